//! Every reason that a condition can have is explained to who is on call.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::Path};

use nomnom_crds::condition::Reason;

#[test]
fn every_reason_has_an_entry_and_no_other() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbook.md");
    let text = fs::read_to_string(path).unwrap();
    let headings = text.lines().filter_map(|line| line.strip_prefix("### "));
    let explained: BTreeSet<_> = headings.collect();
    let reasons: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(explained, reasons);
    for entry in text.split("\n### ").skip(1) {
        let parts = ["**Means:**", "**Look at:**", "**Do:**"];
        assert!(parts.iter().all(|part| entry.contains(part)), "{entry}");
    }
}
