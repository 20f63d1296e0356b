//! A line on standard error for each step that takes longer than two seconds, and none for the others.

use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

const PATIENCE: Duration = Duration::from_secs(2);

/// Does a step, and says what it is when it takes longer.
pub(crate) fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let ended = Arc::new((Mutex::new(false), Condvar::new()));
    let watcher = {
        let (what, ended) = (what.to_owned(), Arc::clone(&ended));
        thread::spawn(move || watch(&what, &ended))
    };
    let outcome = work();
    let (flag, condition) = &*ended;
    if let Ok(mut flag) = flag.lock() {
        *flag = true;
    }
    condition.notify_all();
    // It has nothing to say any more, and what it cannot do is panic.
    watcher.join().ok();
    outcome.with_context(|| what.to_owned())
}

fn watch(what: &str, (flag, condition): &(Mutex<bool>, Condvar)) {
    let Ok(ended) = flag.lock() else { return };
    let Ok((ended, _)) = condition.wait_timeout_while(ended, PATIENCE, |ended| !*ended) else { return };
    if !*ended {
        eprintln!("demo: {what} …");
    }
}
