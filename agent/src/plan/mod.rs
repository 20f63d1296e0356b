//! What is to be done about an enrolled pod: as it ought to be against as it is. Pure.
//!
//! Owns: the actions and their order. Never does: look, or act; that is `enrol`. Called by: `enrol`.
//!
//! As it ought to be is simple: everything of a pod is there for as long as its netns is, and nothing after. So the
//! plan for a pod that is well is empty, and a pass over a node that is well does nothing.

/// An enrolled pod as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a thing of its own that a pod has or has lost")]
pub struct Observed {
    /// Its netns.
    pub netns: Netns,
    /// Who it is, as the kernel or a record keeps it.
    pub record: bool,
    /// Its counters; true where there are none to have.
    pub counters: bool,
    /// All entries of its lists; true where there are none to have.
    pub lists: bool,
    /// What redirects its inbound connections, or its rules.
    pub inbound: bool,
    /// Its policy.
    pub policy: bool,
    /// Listeners of its proxy that connections could not be handed to.
    pub missing_listeners: usize,
}

/// What became of a pod's netns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Netns {
    /// It is where the runtime said.
    Here,
    /// It is gone, or another one is in its place.
    Gone,
    /// It lives, and cannot be seen from here: nothing can be brought into it.
    Unseen,
}

/// Something to do, in the order of this list: what an entry needs comes before it, and the policy, which everything
/// hangs on, last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Action {
    /// Take everything of it away.
    Forget,
    /// Write who it is.
    Record,
    /// Give it counters.
    Counters,
    /// Write its lists, from its manifest.
    Lists,
    /// Bring into its netns what redirects there.
    Inbound,
    /// Register the listeners of its proxy.
    Listeners,
    /// Write its policy, from its manifest.
    Policy,
}

impl Action {
    /// Whether only the pod's manifest says what is to be written.
    pub const fn needs_manifest(self) -> bool {
        matches!(self, Self::Lists | Self::Policy)
    }

    /// For logs: what was found.
    pub const fn finding(self) -> &'static str {
        match self {
            Self::Forget => "its netns is gone",
            Self::Record => "its record was gone",
            Self::Counters => "its counters were gone",
            Self::Lists => "entries of its lists were gone",
            Self::Inbound => "its inbound redirection was gone",
            Self::Listeners => "listeners of its proxy were not registered",
            Self::Policy => "its policy was gone",
        }
    }
}

/// What brings a pod to what it ought to be.
pub fn actions(observed: &Observed) -> Vec<Action> {
    if observed.netns == Netns::Gone {
        return vec![Action::Forget];
    }
    let rows = [
        (!observed.record, Action::Record),
        (!observed.counters, Action::Counters),
        (!observed.lists, Action::Lists),
        (!observed.inbound, Action::Inbound),
        (observed.missing_listeners > 0, Action::Listeners),
        (!observed.policy, Action::Policy),
    ];
    rows.into_iter().filter_map(|(wanted, action)| wanted.then_some(action)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WELL: Observed = Observed {
        netns: Netns::Here,
        record: true,
        counters: true,
        lists: true,
        inbound: true,
        policy: true,
        missing_listeners: 0,
    };

    /// The pod after an action, as far as the plan can tell.
    fn done(mut pod: Observed, action: Action) -> Observed {
        match action {
            Action::Forget => {}
            Action::Record => pod.record = true,
            Action::Counters => pod.counters = true,
            Action::Lists => pod.lists = true,
            Action::Inbound => pod.inbound = true,
            Action::Listeners => pod.missing_listeners = 0,
            Action::Policy => pod.policy = true,
        }
        pod
    }

    #[test]
    fn nothing_is_done_about_a_pod_that_is_well_seen_or_not() {
        assert_eq!(actions(&WELL), []);
        assert_eq!(actions(&Observed { netns: Netns::Unseen, ..WELL }), []);
    }

    #[test]
    fn a_pod_whose_netns_is_gone_goes_whatever_else_is_wrong() {
        assert_eq!(actions(&Observed { netns: Netns::Gone, policy: false, ..WELL }), [Action::Forget]);
    }

    proptest! {
        /// However far the actions come before a crash, those that are left are found again, and no others.
        #[test]
        fn every_plan_ends_in_a_pod_that_is_well_wherever_it_is_broken_off(
            (record, counters, lists, inbound) in any::<(bool, bool, bool, bool)>(),
            (policy, missing_listeners) in (any::<bool>(), 0_usize..3),
            broken_off_after in 0_usize..7,
        ) {
            let pod = Observed { record, counters, lists, inbound, policy, missing_listeners, ..WELL };
            let plan = actions(&pod);
            prop_assert!(plan.is_sorted(), "{plan:?}");
            let crashed = plan.iter().take(broken_off_after).fold(pod, |pod, action| done(pod, *action));
            let rest = actions(&crashed);
            prop_assert_eq!(&rest, &plan.get(broken_off_after.min(plan.len())..).unwrap_or_default());
            let healed = rest.into_iter().fold(crashed, done);
            prop_assert_eq!(healed, WELL);
        }
    }
}
