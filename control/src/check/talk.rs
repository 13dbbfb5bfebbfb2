//! Checks that say something and wait for an answer.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::reach::reach;
use super::{Prober, Stage, Stages};
use crate::model::TalkCheck;

/// How much a target may say before it has said what is expected.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

pub(super) async fn probe(prober: &mut Prober, check: &TalkCheck, stages: &mut Stages) -> Result<(), String> {
    let mut reached = reach(prober, None, stages).await?;
    reached.stream.write_all(&check.send).await.map_err(|error| format!("sending: {error}"))?;
    let mut heard = reached.heard;
    let mut is_first = heard.is_empty();
    loop {
        if check.expect.is_empty() && !heard.is_empty() || contains(&heard, &check.expect) {
            return Ok(());
        }
        if heard.len() >= MAX_ANSWER_BYTES {
            return Err(format!("nothing of what is expected in {MAX_ANSWER_BYTES} bytes"));
        }
        let bytes =
            reached.stream.read_buf(&mut heard).await.map_err(|error| format!("receiving: {error}"))?;
        if std::mem::take(&mut is_first) {
            stages.mark(Stage::FirstByte);
        }
        if bytes == 0 {
            return Err(format!("ended after {} bytes without what is expected", heard.len()));
        }
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}
