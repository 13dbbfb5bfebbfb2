//! Lists of rules: what is read is bounded, and so are the mistakes that are told.

use ringweir_flow::rules::list::{Format, List, MAX_MISTAKES};

pub(crate) fn lists(data: &[u8]) {
    for format in [Format::Plain, Format::Abp] {
        match List::read(data, format) {
            Ok(list) => {
                let lines = data.iter().filter(|byte| **byte == b'\n').count() + 1;
                // Base 64 hides at most as many lines as it has bytes.
                assert!(list.passed_over() <= lines.max(data.len()));
            }
            Err(mistakes) => assert!((1..=MAX_MISTAKES).contains(&mistakes.len()), "{mistakes:?}"),
        }
    }
}
