//! The corpus of the fuzzer, run as a test: what it once found interesting stays right.

mod bodies;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

#[test]
fn for_everything_in_the_corpus_the_plugin_prints_what_a_runtime_can_read() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/plugin");
    let mut count = 0;
    for entry in fs::read_dir(&corpus).unwrap() {
        let path = entry.unwrap().path();
        let input = fs::read(&path).unwrap();
        let judged = catch_unwind(|| bodies::plugin(&input));
        assert!(judged.is_ok(), "with the input {}", path.display());
        count += 1;
    }
    assert!(count > 0, "{} is empty", corpus.display());
}
