//! The corpus of the fuzzer, run as tests: what it once found interesting stays right.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests panic as tests do")]

mod bodies;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

/// Runs a body over every input of its corpus, which must not be empty.
fn replay(target: &str, body: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display())) {
        let path = entry.unwrap().path();
        let input = fs::read(&path).unwrap();
        let judged = catch_unwind(|| body(&input));
        assert!(judged.is_ok(), "with the input {}", path.display());
        count += 1;
    }
    assert!(count > 0, "{} is empty", corpus.display());
}

#[test]
fn every_annotation_value_of_the_corpus_is_taken_or_refused_in_words() {
    replay("annotations", bodies::annotations);
}

#[test]
fn every_manifest_of_the_corpus_is_decided_or_refused_in_words() {
    replay("manifest", bodies::manifest);
}

#[test]
fn every_message_of_the_corpus_is_refused_or_read_as_it_was_meant() {
    replay("cni_message", bodies::cni_message);
}

#[test]
fn every_monitor_line_of_the_corpus_is_read_or_refused_in_words() {
    replay("monitor_line", bodies::monitor_line);
}

#[test]
fn whatever_a_ztunnel_of_the_corpus_says_is_understood_or_refused_in_words() {
    replay("zds", bodies::zds);
}

#[test]
fn every_conflist_of_the_corpus_is_as_it_was_when_veer_is_gone() {
    replay("conflist", bodies::conflist);
}
