//! Whether a pod that is created now would be redirected: conditions with names, each with the reason why it does not
//! hold.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// All conditions.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Option<String>>>>);

/// One of them, in the hands of whoever knows.
#[derive(Clone, Debug)]
pub struct Condition {
    name: &'static str,
    all: Readiness,
}

/// How a condition stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// Its name.
    pub name: &'static str,
    /// Why it does not hold, if so.
    pub problem: Option<String>,
}

impl Readiness {
    /// A condition that does not hold yet, for this reason. Names are few and fixed: they are labels of a metric.
    pub fn condition(&self, name: &'static str, not_yet: &str) -> Condition {
        self.set(name, Some(not_yet.to_owned()));
        Condition { name, all: self.clone() }
    }

    /// How all stand, in the order of their names.
    pub fn held(&self) -> Vec<Held> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(name, problem)| Held { name, problem: problem.clone() }).collect()
    }

    /// Whether it stands otherwise than before.
    fn set(&self, name: &'static str, problem: Option<String>) -> bool {
        let holds = problem.is_none();
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, problem);
        before.is_some_and(|before| before.is_none() != holds)
    }
}

impl Condition {
    /// It holds from now on.
    pub fn holds(&self) {
        if self.all.set(self.name, None) {
            tracing::info!(condition = self.name, "holds");
        }
    }

    /// It does not, for this reason.
    pub fn fails(&self, problem: &str) {
        if self.all.set(self.name, Some(problem.to_owned())) {
            tracing::warn!(condition = self.name, %problem, "not ready any more");
        }
    }
}

impl Held {
    /// Whether it holds.
    pub const fn holds(&self) -> bool {
        self.problem.is_none()
    }

    /// A line for people and probes.
    pub(super) fn text(&self) -> String {
        match &self.problem {
            None => format!("{}: ok\n", self.name),
            Some(problem) => format!("{}: {problem}\n", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_holds_from_when_it_is_said_until_it_fails() {
        let readiness = Readiness::default();
        assert_eq!(readiness.held(), [], "without conditions nothing is missing");
        let (first, second) = (readiness.condition("b", "wait"), readiness.condition("a", "wait"));
        second.holds();
        let texts = || readiness.held().iter().map(Held::text).collect::<String>();
        assert_eq!(texts(), "a: ok\nb: wait\n");
        first.holds();
        assert!(readiness.held().iter().all(Held::holds));
        second.fails("the file is gone");
        assert_eq!(texts(), "a: the file is gone\nb: ok\n");
    }
}
