//! The two ways in which veer redirects, for tests that hold for both.

/// What redirects a pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// Programs on its cgroup and its netns.
    Ebpf,
    /// Rules in its netns.
    Nftables,
}

impl Backend {
    /// Its name, as flags and commands have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Nftables => "nftables",
        }
    }

    /// The argument of an agent that uses it.
    pub fn flag(self) -> String {
        format!("--backend={}", self.name())
    }
}

/// Makes two tests of each function: `ebpf::NAME` and `nftables::NAME`. The functions take the [`Backend`]. One
/// that is not named here is dead code, which the compiler tells.
#[macro_export]
macro_rules! on_each_backend {
    ($($test:ident),+ $(,)?) => {
        mod ebpf {
            $(#[test] fn $test() { super::$test($crate::backend::Backend::Ebpf); })+
        }
        mod nftables {
            $(#[test] fn $test() { super::$test($crate::backend::Backend::Nftables); })+
        }
    };
}
