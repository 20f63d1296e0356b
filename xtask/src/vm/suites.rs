//! What is run in each machine, and for how long at most. Pure.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

/// A part of the tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Suite {
    /// Sockets in network namespaces: every decision, under eBPF and nftables, and every kind of socket
    Lean,
    /// With the real Envoy, the choice of the backend, restarts and other programs on the node
    Full,
}

/// Test binaries of `veer-tests`, and their limits in seconds: five times what they took in a machine that is
/// emulated on two busy cores.
type Programs = &'static [(&'static str, u64)];

const LEAN: Programs = &[
    ("kit", 300),
    ("table", 2400),
    ("modes", 1200),
    ("connect", 2400),
    ("listeners", 2400),
    ("identity", 2400),
    ("interfaces", 2400),
    ("dns", 2400),
];

const FULL: Programs = &[
    ("envoy", 1200),
    ("sidecar", 1200),
    ("tproxy", 1200),
    ("check", 1200),
    ("nftables", 2400),
    ("restart", 2400),
    ("heal", 1200),
    ("repair", 1200),
    ("doctor", 2400),
    ("monitor", 1200),
    ("uninstall", 2400),
    ("clocks", 1800),
    ("socket_lb", 1200),
    ("userns", 1200),
];

/// Tests that are about something which a kernel may lack: the name of that, test binary, and what the tests' names
/// begin with, of all of them if that is empty. The first process asks the kernel by trying
/// (`tests/src/bin/vm-init/ability.rs`) and leaves out those that do not apply; below the table they are named.
const NEEDS: &[(&str, &str, &str)] = &[
    ("ebpf", "table", "ebpf::"),
    ("ebpf", "modes", "ebpf::"),
    ("ebpf", "restart", "ebpf::"),
    ("ebpf", "tproxy", "ebpf::"),
    ("ebpf", "listeners", ""),
    // Its counts: rules count processes in the pod's netns that are not in its cgroup as well, so the test's own.
    ("ebpf", "envoy", "requests_take_the_sidecars_of_both_families_and_veer_counts_what_envoy_counts"),
    ("ebpf", "identity", ""),
    ("ebpf", "heal", ""),
    ("ebpf", "monitor", ""),
    ("ebpf", "socket_lb", ""),
    (
        "interfaces-in-ebpf",
        "interfaces",
        "excluded::a_socket_that_is_tied_to_another_interface_is_captured_whatever",
    ),
    ("mptcp", "connect", "kinds::an_mptcp_client_is_redirected"),
    ("mptcp", "listeners", "addresses::an_mptcp_listener_learns_the_original_destination"),
    ("mptcp", "listeners", "addresses::an_mptcp_listener_of_the_inbound_port_is_told_apart_from_none"),
    (
        "mptcp",
        "identity",
        "listeners::the_place_is_free_as_soon_as_the_last_mptcp_socket_does_not_listen_any_more",
    ),
];

impl Suite {
    pub(super) const ALL: [Self; 2] = [Self::Lean, Self::Full];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Lean => "lean",
            Self::Full => "full",
        }
    }

    const fn programs(self) -> Programs {
        match self {
            Self::Lean => LEAN,
            Self::Full => FULL,
        }
    }
}

/// What the first process reads; `tests/src/bin/vm-init/plan.rs` has the same fields.
#[derive(Serialize, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) environment: BTreeMap<String, String>,
    pub(super) needs: Vec<Need>,
    pub(super) suites: Vec<Planned>,
}

/// Tests that are about something which a kernel may lack.
#[derive(Serialize, Debug, PartialEq, Eq)]
pub(super) struct Need {
    ability: &'static str,
    program: &'static str,
    tests: &'static str,
}

/// A suite of the plan.
#[derive(Serialize, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) programs: Vec<Program>,
}

/// A test binary of the plan.
#[derive(Serialize, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) name: String,
    pub(super) test: Option<String>,
    pub(super) arguments: Vec<String>,
    pub(super) environment: BTreeMap<String, String>,
    pub(super) limit: u64,
}

/// A test binary, or some of its tests: `table`, `table:o1_`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Only {
    program: String,
    test: Option<String>,
}

impl FromStr for Only {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (program, test) = match text.split_once(':') {
            Some((program, test)) => (program, Some(test.to_owned())),
            None => (text, None),
        };
        if Suite::ALL.iter().flat_map(|suite| suite.programs()).any(|(name, _)| *name == program) {
            return Ok(Self { program: program.to_owned(), test });
        }
        let names = Suite::ALL.iter().flat_map(|suite| suite.programs()).map(|(name, _)| *name);
        Err(format!("the suites have {}", names.collect::<Vec<_>>().join(", ")))
    }
}

impl Plan {
    /// The suites, or what `only` leaves of them, if it names anything.
    pub(super) fn of(suites: &[Suite], only: &[Only], environment: BTreeMap<String, String>) -> Self {
        let chosen = |name: &str| only.iter().find(|only| only.program == name);
        let planned = suites.iter().map(|suite| Planned {
            name: suite.name().to_owned(),
            programs: suite
                .programs()
                .iter()
                .filter(|(name, _)| only.is_empty() || chosen(name).is_some())
                .map(|(name, limit)| program(name, *limit, chosen(name).and_then(|only| only.test.clone())))
                .collect(),
        });
        let suites = planned.filter(|planned| !planned.programs.is_empty()).collect();
        let need = |(ability, program, tests): &(&'static str, &'static str, &'static str)| Need {
            ability,
            program,
            tests,
        };
        Self { environment, needs: NEEDS.iter().map(need).collect(), suites }
    }

    /// The names of its suites.
    pub(super) fn names(&self) -> Vec<&str> {
        self.suites.iter().map(|suite| suite.name.as_str()).collect()
    }

    /// The names of its test binaries.
    pub(super) fn programs(&self) -> Vec<&str> {
        let mut names: Vec<_> = self
            .suites
            .iter()
            .flat_map(|suite| &suite.programs)
            .map(|program| program.name.as_str())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The limit of a test binary.
    pub(super) fn limit(&self, suite: &str, program: &str) -> Option<Duration> {
        let suite = self.suites.iter().find(|planned| planned.name == suite)?;
        let program = suite.programs.iter().find(|planned| planned.name == program)?;
        Some(Duration::from_secs(program.limit))
    }
}

/// Two tests at a time: a machine has two processors.
fn program(name: &str, limit: u64, test: Option<String>) -> Program {
    let arguments = vec!["--test-threads=2".to_owned()];
    Program { name: name.to_owned(), test, arguments, environment: BTreeMap::new(), limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(suites: &[Suite], only: &[&str]) -> Plan {
        let only: Vec<Only> = only.iter().map(|only| only.parse().unwrap()).collect();
        Plan::of(suites, &only, BTreeMap::new())
    }

    #[test]
    fn what_is_asked_for_alone_is_all_that_is_planned() {
        let plan_of_two = plan(&Suite::ALL, &["table:o1_", "envoy"]);
        assert_eq!(plan_of_two.names(), ["lean", "full"]);
        assert_eq!(plan_of_two.programs(), ["envoy", "table"]);
        let plan = plan(&Suite::ALL, &["table:o1_"]);
        assert_eq!(plan.names(), ["lean"]);
        assert_eq!(plan.suites[0].programs[0].test.as_deref(), Some("o1_"));
        assert!("tables".parse::<Only>().unwrap_err().contains("table, "));
    }

    #[test]
    fn what_a_kernel_may_lack_is_needed_by_tests_of_the_suites() {
        for (ability, program, _) in NEEDS {
            let is_known = LEAN.iter().chain(FULL).any(|(name, _)| name == program);
            assert!(is_known, "{program} needs {ability}");
        }
    }

    #[test]
    fn each_suite_has_programs_and_every_program_a_limit() {
        for suite in Suite::ALL {
            let plan = plan(&[suite], &[]);
            assert!(plan.suites[0].programs.iter().all(|program| program.limit > 0), "{}", suite.name());
        }
        let both = plan(&Suite::ALL, &[]);
        assert_eq!(both.limit("lean", "kit"), Some(Duration::from_mins(5)));
        assert_eq!(both.limit("full", "kit"), None);
    }
}
