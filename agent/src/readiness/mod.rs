//! Whether a pod that is created now would be redirected: conditions with names, each with the reason why it does not
//! hold. There is one answer, and whoever asks gets it: `/readyz`, the metrics, and the node's condition and taint.
//!
//! Owns: the conditions, and what they come to ([`Verdict`]); and the two that only hold if somebody asks ([`probe`]).
//! Never does: act on them. Called by: `app`, which gives a condition to each part that has one ([`Readiness::condition`]),
//! `admin` and `cluster::node`, which tell of it.

pub mod probe;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// All conditions.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<BTreeMap<&'static str, Standing>>>);

/// One of them, in the hands of whoever knows.
#[derive(Clone, Debug)]
pub struct Condition {
    name: &'static str,
    all: Readiness,
}

/// How a condition stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It holds.
    Holds,
    /// Nobody can say: the agent has not come to it yet, or is stopping. It is not ready then, and it is no news either.
    Unknown(String),
    /// It does not, for this reason.
    Fails(String),
}

/// A condition, as it stood when somebody asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// Its name.
    pub name: &'static str,
    /// How it stands.
    pub standing: Standing,
}

/// What all conditions come to, for whoever tells others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// A pod that is created now would be redirected.
    Ready,
    /// It would not.
    NotReady {
        /// The first condition that fails.
        first: &'static str,
        /// All of them, each with its reason.
        problem: String,
    },
}

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeMap::new())))
    }
}

impl Readiness {
    /// A condition of which nothing is known yet, for this reason. Names are few and fixed: they are labels of a metric.
    pub fn condition(&self, name: &'static str, not_yet: &str) -> Condition {
        let condition = Condition { name, all: self.clone() };
        condition.unknown(not_yet);
        condition
    }

    /// How all stand, in the order of their names.
    pub fn held(&self) -> Vec<Held> {
        let all = self.0.borrow();
        all.iter().map(|(name, standing)| Held { name, standing: standing.clone() }).collect()
    }

    /// What they come to; `None` while nothing fails, and not all is known.
    pub fn verdict(&self) -> Option<Verdict> {
        let held = self.held();
        let failing: Vec<&Held> = held.iter().filter(|held| held.fails()).collect();
        match failing.first() {
            Some(first) => {
                let problem = failing.iter().map(|held| held.text()).collect::<Vec<_>>().join("; ");
                Some(Verdict::NotReady { first: first.name, problem })
            }
            None => held.iter().all(Held::holds).then_some(Verdict::Ready),
        }
    }

    /// Hears of each change, whoever asks for what they come to then.
    pub fn changes(&self) -> Changes {
        Changes(self.0.subscribe())
    }

    /// How it stood before.
    fn set(&self, name: &'static str, standing: &Standing) -> Option<Standing> {
        let mut before = None;
        self.0.send_if_modified(|all| {
            before = all.insert(name, standing.clone());
            before.as_ref() != Some(standing)
        });
        before
    }
}

/// Tells that some condition stands otherwise.
#[derive(Debug)]
pub struct Changes(watch::Receiver<BTreeMap<&'static str, Standing>>);

impl Changes {
    /// Waits for a change since the last call; for ever if nobody is left who has a condition.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Condition {
    /// It holds from now on.
    pub fn holds(&self) {
        let before = self.all.set(self.name, &Standing::Holds);
        if before.is_some_and(|before| before != Standing::Holds) {
            tracing::info!(condition = self.name, "holds");
        }
    }

    /// It does not, for this reason.
    pub fn fails(&self, problem: &str) {
        let before = self.all.set(self.name, &Standing::Fails(problem.to_owned()));
        if before.is_some_and(|before| !matches!(before, Standing::Fails(_))) {
            tracing::warn!(condition = self.name, %problem, "not ready");
        }
    }

    /// Nobody can say, for this reason.
    pub fn unknown(&self, reason: &str) {
        self.all.set(self.name, &Standing::Unknown(reason.to_owned()));
    }

    /// Holds or fails.
    pub fn is<T, E: ToString>(&self, outcome: &Result<T, E>) {
        match outcome {
            Ok(_) => self.holds(),
            Err(problem) => self.fails(&problem.to_string()),
        }
    }
}

impl Held {
    /// Whether it holds.
    pub fn holds(&self) -> bool {
        self.standing == Standing::Holds
    }

    const fn fails(&self) -> bool {
        matches!(self.standing, Standing::Fails(_))
    }

    /// For people and probes: `cni: the file is gone`.
    pub fn text(&self) -> String {
        match &self.standing {
            Standing::Holds => format!("{}: ok", self.name),
            Standing::Unknown(problem) | Standing::Fails(problem) => format!("{}: {problem}", self.name),
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
        let texts = || readiness.held().iter().map(Held::text).collect::<Vec<_>>();
        assert_eq!(texts(), ["a: ok", "b: wait"]);
        first.holds();
        assert!(readiness.held().iter().all(Held::holds));
        second.fails("the file is gone");
        assert_eq!(texts(), ["a: the file is gone", "b: ok"]);
    }

    #[test]
    fn a_start_and_a_stop_are_no_news_and_one_failure_is() {
        let readiness = Readiness::default();
        let [one, two, three] = ["a", "b", "c"].map(|name| readiness.condition(name, "not looked at yet"));
        assert_eq!(readiness.verdict(), None);
        one.holds();
        three.fails("the file is gone");
        let problem = "c: the file is gone".to_owned();
        assert_eq!(readiness.verdict(), Some(Verdict::NotReady { first: "c", problem }));
        two.fails("no answer");
        let problem = "b: no answer; c: the file is gone".to_owned();
        assert_eq!(readiness.verdict(), Some(Verdict::NotReady { first: "b", problem }));
        two.holds();
        three.holds();
        assert_eq!(readiness.verdict(), Some(Verdict::Ready));
        one.unknown("the agent is stopping");
        assert_eq!(readiness.verdict(), None);
    }

    #[test]
    fn what_stands_as_before_is_no_change() {
        let readiness = Readiness::default();
        let condition = readiness.condition("a", "wait");
        let changes = readiness.changes();
        condition.unknown("wait");
        assert!(!changes.0.has_changed().unwrap());
        condition.fails("away");
        assert!(changes.0.has_changed().unwrap());
    }
}
