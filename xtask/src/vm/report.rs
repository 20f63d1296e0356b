//! What a machine tells, line by line: marked lines from its first process, and between them those of the tests.
//!
//! Pure: lines in, a [`Report`] out. `tests/src/bin/vm-init` writes the marked ones. What is not told has not
//! happened: a machine that falls silent has failed.

use serde::Deserialize;
use serde_json::Value;

use crate::test::Count;

/// What a marked line begins with.
const MARK: &str = "@veer-vm ";

#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Event {
    Boot { release: String },
    Doctor { exit: Option<i32>, report: Value },
    Lacks { ability: String, because: String },
    Start { suite: String, program: String, tests: u32, without: Vec<String> },
    End { suite: String, program: String, exit: Option<i32>, late: bool, seconds: f64 },
    Error { text: String },
    Done,
}

/// A program that has ended, or has begun and was never heard of again.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Program {
    pub(super) suite: String,
    pub(super) name: String,
    pub(super) count: Count,
    /// The names of tests that failed.
    pub(super) failed: Vec<String>,
    /// The names of tests that do not apply to this kernel, which lacks what they are about.
    pub(super) without: Vec<String>,
    /// How many it was to run.
    tests: u32,
    pub(super) end: Option<End>,
}

/// What a kernel does not have that tests are about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lack {
    pub(super) ability: String,
    /// What the kernel said when it was asked for.
    pub(super) because: String,
}

/// How a program has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct End {
    /// `None`: by a signal.
    exit: Option<i32>,
    /// Its time was up.
    late: bool,
    pub(super) seconds: f64,
}

/// What `veer doctor` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Doctor {
    /// Its exit code says whether the node is able; 0 and 1 (warnings) are.
    pub(super) able: bool,
    /// What `--backend auto` would choose.
    pub(super) backend: String,
    /// Findings that are errors: name and words.
    pub(super) errors: Vec<String>,
}

/// All that was told.
#[derive(Default, Debug)]
pub(super) struct Report {
    pub(super) release: Option<String>,
    pub(super) doctor: Option<Doctor>,
    pub(super) lacks: Vec<Lack>,
    pub(super) programs: Vec<Program>,
    pub(super) error: Option<String>,
    pub(super) done: bool,
}

/// What somebody who watches would want to know at once.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    Booted,
    Doctor,
    Begun,
    Ended,
}

impl Report {
    /// Takes one line in.
    pub(super) fn take(&mut self, line: &str) -> Option<News> {
        let line = line.trim_end();
        if let Some(event) = line.strip_prefix(MARK) {
            return match serde_json::from_str(event) {
                Ok(event) => self.event(event),
                Err(error) => {
                    self.error = Some(format!("{error} in what it told: {event}"));
                    None
                }
            };
        }
        if let Some(program) = self.programs.last_mut().filter(|program| program.end.is_none()) {
            program.take(line);
        }
        None
    }

    fn event(&mut self, event: Event) -> Option<News> {
        match event {
            Event::Boot { release } => {
                self.release = Some(release);
                Some(News::Booted)
            }
            Event::Doctor { exit, report } => {
                self.doctor = Some(doctor(exit, &report));
                Some(News::Doctor)
            }
            Event::Lacks { ability, because } => {
                self.lacks.push(Lack { ability, because });
                None
            }
            Event::Start { suite, program, tests, without } => {
                self.programs.push(Program::begun(suite, program, tests, without));
                Some(News::Begun)
            }
            Event::End { suite, program, exit, late, seconds } => {
                let begun =
                    self.programs.iter_mut().rfind(|begun| begun.suite == suite && begun.name == program)?;
                begun.end = Some(End { exit, late, seconds });
                Some(News::Ended)
            }
            Event::Error { text } => {
                self.error = Some(text);
                None
            }
            Event::Done => {
                self.done = true;
                None
            }
        }
    }

    /// The program that runs now.
    pub(super) fn running(&self) -> Option<&Program> {
        self.programs.last().filter(|program| program.end.is_none())
    }

    /// What was found wrong, in a line each; nothing if all is well.
    pub(super) fn complaints(&self) -> Vec<String> {
        let mut complaints: Vec<_> = self.error.iter().map(|error| format!("the machine: {error}")).collect();
        match &self.doctor {
            None => complaints.push("veer doctor was not heard of".to_owned()),
            Some(doctor) if !doctor.able => {
                complaints.extend(doctor.errors.iter().map(|error| format!("doctor: {error}")));
                complaints.push("doctor: this node is not able".to_owned());
            }
            Some(_) => {}
        }
        for program in self.programs.iter().filter(|program| !program.is_well()) {
            complaints.push(format!("{} {}: {}", program.suite, program.name, program.outcome()));
        }
        if !self.done {
            complaints.push("the machine did not come to its end".to_owned());
        }
        complaints
    }
}

impl Program {
    fn begun(suite: String, name: String, tests: u32, without: Vec<String>) -> Self {
        let (count, failed) = (Count::default(), Vec::new());
        Self { suite, name, count, failed, without, tests, end: None }
    }

    /// Takes in a line of its own: what became of a test, and at the end of all.
    fn take(&mut self, line: &str) {
        let mut all = Count::default();
        all.add(line);
        if all != Count::default() {
            self.count = all;
            return;
        }
        let Some((name, outcome)) = line.strip_prefix("test ").and_then(|line| line.rsplit_once(" ... "))
        else {
            return;
        };
        match outcome {
            "ok" => self.count.passed += 1,
            "FAILED" => {
                self.count.failed += 1;
                self.failed.push(name.to_owned());
            }
            "ignored" => self.count.ignored += 1,
            _ => {}
        }
    }

    /// It ended well, and every test that it was to run has passed.
    pub(super) fn is_well(&self) -> bool {
        self.end.is_some_and(|end| end.exit == Some(0))
            && self.count.passed == self.tests
            && self.does_something()
    }

    /// No test at all is no pass, unless none applies.
    fn does_something(&self) -> bool {
        self.tests > 0 || !self.without.is_empty()
    }

    /// In a few words.
    pub(super) fn outcome(&self) -> String {
        let names =
            if self.failed.is_empty() { String::new() } else { format!(" ({})", self.failed.join(", ")) };
        let how = match self.end {
            None => ", and was never heard of again".to_owned(),
            Some(End { late: true, .. }) => ", and was ended: its time was up".to_owned(),
            Some(End { exit: None, .. }) => ", and was ended by a signal".to_owned(),
            Some(End { exit: Some(0), .. }) if !self.does_something() => ", and no test was run".to_owned(),
            Some(End { exit: Some(0), .. }) if self.count.passed + self.count.failed != self.tests => {
                format!(" of the {} that apply", self.tests)
            }
            Some(_) => String::new(),
        };
        let failed =
            if self.count.failed > 0 { format!(", {} failed{names}", self.count.failed) } else { names };
        let without = not_applying(self.without.len());
        format!("{} passed{failed}{without}{how}", self.count.passed)
    }
}

/// So many that do not apply, if any: `, 3 do not apply`.
pub(super) fn not_applying(tests: usize) -> String {
    match tests {
        0 => String::new(),
        1 => ", 1 does not apply".to_owned(),
        more => format!(", {more} do not apply"),
    }
}

fn doctor(exit: Option<i32>, report: &Value) -> Doctor {
    let findings = report.get("findings").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |finding: &Value, name: &str| {
        finding.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let errors = findings.iter().filter(|finding| text(finding, "level") == "error");
    Doctor {
        able: matches!(exit, Some(0 | 1)),
        backend: report.get("backend").and_then(Value::as_str).unwrap_or("none").to_owned(),
        errors: errors
            .map(|finding| format!("{}: {}", text(finding, "name"), text(finding, "says")))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a machine tells whose tests went well.
    const WELL: &str = r#"
@veer-vm {"event":"boot","release":"6.1.0-56-cloud-amd64"}

@veer-vm {"event":"doctor","exit":1,"report":{"backend":"ebpf","findings":[{"level":"warning","name":"x","says":"y"}]}}

@veer-vm {"event":"start","suite":"lean","program":"kit","tests":2,"without":[]}

running 2 tests
test one ... ok
test two ... ok

test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.10s


@veer-vm {"event":"end","suite":"lean","program":"kit","exit":0,"late":false,"seconds":3.4}

@veer-vm {"event":"done"}
"#;

    fn report(text: &str) -> Report {
        let mut report = Report::default();
        for line in text.lines() {
            report.take(line);
        }
        report
    }

    #[test]
    fn a_machine_that_told_all_and_failed_nothing_has_no_complaints() {
        let report = report(WELL);
        assert_eq!(report.complaints(), [""; 0]);
        assert_eq!(report.release.as_deref(), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(report.doctor.as_ref().map(|doctor| doctor.backend.as_str()), Some("ebpf"));
        assert_eq!(report.programs[0].outcome(), "2 passed");
    }

    #[test]
    fn what_the_serial_line_adds_is_not_part_of_a_line() {
        assert_eq!(report(&WELL.replace('\n', "\r\n")).complaints(), [""; 0]);
    }

    #[test]
    fn a_failed_test_is_named() {
        let text =
            WELL.replace("two ... ok", "two ... FAILED").replace("2 passed; 0 failed", "1 passed; 1 failed");
        let text = text.replace(r#""kit","exit":0"#, r#""kit","exit":101"#);
        assert_eq!(report(&text).complaints(), ["lean kit: 1 passed, 1 failed (two)"]);
    }

    #[test]
    fn silence_is_a_failure_wherever_it_begins() {
        let complaints = |words: &str| report(WELL.split_once(words).unwrap().0).complaints();
        let no_end = "the machine did not come to its end";
        assert_eq!(complaints("@veer-vm {\"event\":\"boot"), ["veer doctor was not heard of", no_end]);
        assert_eq!(complaints("test two"), ["lean kit: 1 passed, and was never heard of again", no_end]);
        assert_eq!(complaints("@veer-vm {\"event\":\"done"), [no_end]);
    }

    /// The same of a kernel that lacks what one of three tests is about.
    fn without_one() -> String {
        let lacks = r#"@veer-vm {"event":"lacks","ability":"mptcp","because":"Protocol not supported"}"#;
        let start = r#"@veer-vm {"event":"start""#;
        let told = WELL.replace(start, &format!("{lacks}\n{start}"));
        told.replace(r#""without":[]"#, r#""without":["three"]"#)
    }

    #[test]
    fn what_does_not_apply_is_no_failure_and_is_told() {
        let report = report(&without_one());
        assert_eq!(report.complaints(), [""; 0]);
        assert_eq!(report.programs[0].outcome(), "2 passed, 1 does not apply");
        let lack = Lack { ability: "mptcp".to_owned(), because: "Protocol not supported".to_owned() };
        assert_eq!(report.lacks, [lack]);
    }

    #[test]
    fn a_test_that_applies_and_was_not_run_is_a_failure() {
        let three = WELL.replace(r#""tests":2"#, r#""tests":3"#);
        assert_eq!(report(&three).complaints(), ["lean kit: 2 passed of the 3 that apply"]);
        let ignored = WELL.replace("2 passed", "1 passed").replace("0 ignored", "1 ignored");
        assert_eq!(report(&ignored).complaints(), ["lean kit: 1 passed of the 2 that apply"]);
    }

    #[test]
    fn where_no_test_applies_none_is_wanted_and_where_there_is_none_one_is() {
        let none = without_one().replace(r#""tests":2"#, r#""tests":0"#).replace("2 passed", "0 passed");
        let none = none.replace("test one ... ok\ntest two ... ok\n", "");
        assert_eq!(report(&none).complaints(), [""; 0]);
        assert_eq!(report(&none).programs[0].outcome(), "0 passed, 1 does not apply");
        let nothing = WELL.replace(r#""tests":2"#, r#""tests":0"#).replace("2 passed", "0 passed");
        let nothing = nothing.replace("test one ... ok\ntest two ... ok\n", "");
        assert_eq!(report(&nothing).complaints(), ["lean kit: 0 passed, and no test was run"]);
    }

    #[test]
    fn a_program_that_hung_crashed_or_ran_nothing_is_told_apart() {
        let complaints = |end: &str| report(&WELL.replace(r#""exit":0,"late":false"#, end)).complaints();
        assert_eq!(
            complaints(r#""exit":null,"late":true"#),
            ["lean kit: 2 passed, and was ended: its time was up"]
        );
        assert_eq!(
            complaints(r#""exit":null,"late":false"#),
            ["lean kit: 2 passed, and was ended by a signal"]
        );
    }

    #[test]
    fn a_node_that_is_not_able_is_a_failure_with_the_findings_that_say_so() {
        let text =
            WELL.replace(r#""exit":1"#, r#""exit":2"#).replace(r#""level":"warning""#, r#""level":"error""#);
        assert_eq!(report(&text).complaints(), ["doctor: x: y", "doctor: this node is not able"]);
    }

    #[test]
    fn a_marked_line_that_cannot_be_read_is_a_failure() {
        let text = WELL.replace(r#"{"event":"boot""#, r#"{"event":"boo"#);
        assert!(
            report(&text).complaints()[0].starts_with("the machine: "),
            "{:?}",
            report(&text).complaints()
        );
    }
}
