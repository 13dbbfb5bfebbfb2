//! Every input that is kept is tried with every test: what was found once stays fixed.

use std::fs;
use std::path::Path;

use ringweir_fuzz::TARGETS;

/// A corpus is there to be read, not to be large.
const MAX_FILE_BYTES: u64 = 4096;

#[test]
fn every_corpus_is_a_target_s() {
    let corpora = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")).unwrap();
    for corpus in corpora.map(|entry| entry.unwrap().file_name()) {
        assert!(TARGETS.iter().any(|target| corpus == target.name), "{corpus:?} is nobody's");
    }
}

#[test]
fn every_kept_input_holds() {
    for target in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
        let mut tried = 0;
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            assert!(fs::metadata(&path).unwrap().len() <= MAX_FILE_BYTES, "{} is large", path.display());
            println!("{}", path.display());
            (target.run)(&fs::read(&path).unwrap());
            tried += 1;
        }
        assert!(tried > 0, "{} has no corpus", target.name);
    }
}
