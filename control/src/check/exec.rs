//! Checks by a program: it says by its exit status whether the target is well.

use std::process::Stdio;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::Prober;
use crate::model::ExecCheck;

/// How much of what a program writes is shown; the rest is read and dropped, so that it is not held up.
const MAX_SHOWN_BYTES: usize = 512;

/// Runs the program. When it is dropped, as at the end of the probe's time, the program's whole process group is
/// killed.
pub(super) async fn probe(prober: &Prober, check: &ExecCheck) -> Result<(), String> {
    let mut command = Command::new(&check.program);
    command
        .args(&check.arguments)
        .env("RINGWEIR_TARGET", &*prober.target)
        .env("RINGWEIR_ADDRESS", prober.upstream.endpoint.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    #[cfg(unix)]
    command.process_group(0);
    let failed = |error: std::io::Error| format!("{} cannot be run: {error}", check.program);
    let mut group = Group(command.spawn().map_err(failed)?);
    let (stdout, stderr) = (group.0.stdout.take(), group.0.stderr.take());
    let (said, complained) = tokio::join!(read(stdout), read(stderr));
    let status = group.0.wait().await.map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let text = if complained.is_empty() { said } else { complained };
    let text = String::from_utf8_lossy(&text);
    Err(format!("{} ended with {status}: {}", check.program, text.trim()))
}

/// A program and its children.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Some(id) = self.0.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?)) {
            // It fails only when nobody of the group is left.
            let _ = rustix::process::kill_process_group(id, rustix::process::Signal::KILL);
        }
    }
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let (mut shown, mut piece) = (Vec::new(), [0; 4096]);
    let Some(mut pipe) = pipe else { return shown };
    while let Ok(bytes @ 1..) = pipe.read(&mut piece).await {
        let room = MAX_SHOWN_BYTES - shown.len();
        shown.extend_from_slice(&piece[..bytes.min(room)]);
    }
    shown
}
