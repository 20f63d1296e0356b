//! `cargo xtask vm`: the tests in virtual machines, on the kernels that users run.
//!
//! Owns: the order of things: build, pack, boot, judge. One archive holds what all machines have ([`image`]), each
//! kernel adds its modules ([`kernel`]), and the plan of what to run ([`suites`]); the first process of the guest
//! (`vm-init` of `veer-tests`) runs it and tells ([`report`]). Some machines at a time.
//! Never does: install or fetch anything, which is `setup --vm`'s, or pass by skipping: what is missing fails.

mod archive;
mod image;
mod kernel;
mod machine;
mod report;
mod suites;
mod table;

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::build::{self, Profile};
use crate::exec::{print, say};
use crate::setup::{self, VmTools};
use crate::{FAILED, workspace};
use kernel::Kernel;
use machine::Machine;
use report::{News, Program, Report};
use suites::{Only, Plan, Suite};
use table::Row;

/// Machines at a time, at the least. Each has two emulated processors, and keeps one and a half real ones busy.
const AT_A_TIME: usize = 2;
/// What a machine may take for what is no test binary: its boot with the archive, `veer doctor`, and ending a test
/// binary whose time is up.
const PATIENCE: Duration = Duration::from_mins(4);

/// The backend that Debian's kernels take.
const EBPF: &str = "ebpf";

/// What to run where.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Of Debian's kernels only these: 5.10, 6.1, 6.12, 6.18, newest
    #[arg(long, value_name = "SERIES", value_delimiter = ',')]
    kernel: Vec<String>,
    /// A kernel of your own instead, as packages of Debian's form; those of one kernel with commas between
    #[arg(long, value_name = "FILE[,FILE]", conflicts_with = "kernel")]
    kernel_deb: Vec<String>,
    /// Only this suite; all of them, if absent
    #[arg(long)]
    suite: Vec<Suite>,
    /// Only these test binaries, or their tests with that in their name
    #[arg(long, value_name = "PROGRAM[:TEST]", value_delimiter = ',')]
    only: Vec<Only>,
}

/// A kernel to test on.
struct Subject {
    /// What it was asked for by.
    name: String,
    packages: Vec<PathBuf>,
    /// Whether `auto` has to choose eBPF; of a kernel that nobody here knows, that is what is to be found out.
    takes_ebpf: bool,
}

/// The verb.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let root = workspace::root()?;
    let tools = setup::vm_tools(&options.kernel, options.kernel_deb.is_empty())?;
    let subjects = subjects(options, &tools);
    let suites = if options.suite.is_empty() { Suite::ALL.to_vec() } else { options.suite.clone() };
    let plan = Plan::of(&suites, &options.only, environment());
    let place = place(&root)?;
    // Another call may run beside this one.
    let scratch = tempfile::tempdir_in(&place).context("make a temporary directory")?;
    let base = scratch.path().join("base.cpio");
    archive::create(&image::base(&binaries(&root, &plan)?, &tools.tools, &tools.busybox)?, &base)?;

    let bench = Bench { tools: &tools, plan: &plan, base: &base, place: &place };
    let rows = bench.run(subjects);
    scratch.close().context("remove a temporary directory")?;
    judge(&rows?, &plan, &place)
}

fn judge(rows: &[Row], plan: &Plan, place: &Path) -> Result<ExitCode> {
    print("")?;
    for row in rows {
        for complaint in &row.complaints {
            print(&format!("{}: {complaint}", row.kernel))?;
        }
    }
    for line in table::render(rows, &plan.names()) {
        print(&line)?;
    }
    for line in rows.iter().flat_map(table::not_applying) {
        print(&line)?;
    }
    let (count, failed) = (table::sum(rows), rows.iter().filter(|row| !row.complaints.is_empty()).count());
    print(&format!("\n{} passed, {} failed", count.passed, count.failed))?;
    if failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!("vm: failed on {failed} of {} kernels; their logs are in {}", rows.len(), place.display()));
    Ok(ExitCode::from(FAILED))
}

fn subjects(options: &Options, tools: &VmTools) -> Vec<Subject> {
    if options.kernel_deb.is_empty() {
        let subject = |(name, packages): &(String, Vec<PathBuf>)| Subject {
            name: name.clone(),
            packages: packages.clone(),
            takes_ebpf: true,
        };
        return tools.kernels.iter().map(subject).collect();
    }
    let subject = |(number, files): (usize, &String)| Subject {
        name: format!("own-{number}"),
        packages: files.split(',').map(PathBuf::from).collect(),
        takes_ebpf: false,
    };
    (1..).zip(&options.kernel_deb).map(subject).collect()
}

/// Where everything of this verb is: logs, and what is removed at its end.
fn place(root: &Path) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let place = target.join("vm");
    fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
    Ok(place)
}

/// What runs in the guest, by its name there. Release: what nodes run; and the guest is slow enough.
fn binaries(root: &Path, plan: &Plan) -> Result<Vec<(String, PathBuf)>> {
    let built = build::tests(root, Profile::Release)?;
    let node = ["veer", "veer-cni", "vm-init", "in-pod", "dial", "echo-app", "socket-maker"];
    let names = node.into_iter().chain(plan.programs());
    names.map(|name| Ok((name.to_owned(), built.find(name)?))).collect()
}

/// Variables of everything that the guest runs.
fn environment() -> BTreeMap<String, String> {
    let at = |directory: &str, name: &str| format!("{directory}/{name}");
    let variables = [
        ("PATH", image::search_path()),
        ("HOME", "/root".to_owned()),
        ("VEER_BIN", at(image::PLACE, "veer")),
        ("VEER_CNI_BIN", at(image::PLACE, "veer-cni")),
        ("VEER_ENVOY", at(image::TOOLS, "envoy")),
        ("VEER_ISTIO_IPTABLES", at(image::TOOLS, "istio-iptables")),
        ("CNI_PATH", at(image::TOOLS, "cni")),
        // Measured: 5 to 7 for computing, 30 to 50 for a round trip; and other machines are on the same processors.
        ("VEER_SLOWNESS", "10".to_owned()),
    ];
    variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What all machines are made of.
struct Bench<'a> {
    tools: &'a VmTools,
    plan: &'a Plan,
    base: &'a Path,
    place: &'a Path,
}

impl Bench<'_> {
    /// Runs all subjects, some at a time; rows in the order of the subjects.
    fn run(&self, subjects: Vec<Subject>) -> Result<Vec<Row>> {
        let queue: Mutex<VecDeque<(usize, Subject)>> = Mutex::new(subjects.into_iter().enumerate().collect());
        let rows = Mutex::new(Vec::new());
        let next = || queue.lock().ok()?.pop_front();
        let work = || {
            while let Some((number, subject)) = next() {
                let row = self.row(&subject);
                if let Ok(mut rows) = rows.lock() {
                    rows.push((number, row));
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..at_a_time() {
                scope.spawn(work);
            }
        });
        let mut rows =
            rows.into_inner().map_err(|_poisoned| anyhow!("a thread that ran a machine panicked"))?;
        rows.sort_by_key(|(number, _)| *number);
        Ok(rows.into_iter().map(|(_, row)| row).collect())
    }

    /// A kernel that could not even be unpacked is a row that failed.
    fn row(&self, subject: &Subject) -> Row {
        let (report, complaints) =
            self.boot(subject).unwrap_or_else(|error| (Report::default(), vec![format!("{error:#}")]));
        let release = report.release.clone().unwrap_or_else(|| "not booted".to_owned());
        let kernel = format!("{} ({release})", subject.name);
        say(&format!("{kernel}: {}", if complaints.is_empty() { "all well" } else { "FAILED" }));
        Row { kernel, report, complaints }
    }

    fn boot(&self, subject: &Subject) -> Result<(Report, Vec<String>)> {
        let logs = self.place.join(&subject.name);
        if logs.exists() {
            fs::remove_dir_all(&logs).with_context(|| format!("remove {}", logs.display()))?;
        }
        fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
        // Removed at the end, whatever that is; the logs stay.
        let scratch = tempfile::tempdir_in(self.place).context("make a temporary directory")?;
        let kernel = Kernel::unpack(&subject.packages, &scratch.path().join("packages"))?;
        let machine = Machine {
            qemu: self.tools.qemu.clone(),
            kernel: kernel.image.clone(),
            archive: self.pack(&kernel, scratch.path())?,
            logs,
            parameters: String::new(),
        };
        let patience = |report: &Report| PATIENCE + self.limit(report);
        let report = machine.run(patience, |report, news| progress(&subject.name, report, &news))?;
        let mut complaints = report.complaints();
        if let (true, Some(doctor)) = (subject.takes_ebpf, &report.doctor)
            && doctor.backend != EBPF
        {
            complaints
                .push(format!("{} would be used, and this kernel has always taken {EBPF}", doctor.backend));
            complaints.extend(doctor.errors.iter().cloned());
        }
        complaints.extend(machine.splats());
        Ok((report, complaints))
    }

    /// The limit of what runs in a machine just now.
    fn limit(&self, report: &Report) -> Duration {
        let of = |program: &Program| self.plan.limit(&program.suite, &program.name);
        report.running().and_then(of).unwrap_or_default()
    }

    /// The archive of one machine: what is common, its modules, its plan.
    fn pack(&self, kernel: &Kernel, scratch: &Path) -> Result<PathBuf> {
        let own = scratch.join("own.cpio");
        let mut modules = kernel.modules()?;
        let plan = Path::new(image::PLACE).join("plan.json");
        modules.put(plan, archive::Entry::Text(serde_json::to_string_pretty(self.plan)?));
        archive::create(&modules, &own)?;
        let whole = scratch.join("archive.cpio");
        archive::join(&[self.base, &own], &whole)?;
        Ok(whole)
    }
}

/// Machines at a time: with four processors three, which then wait for each other little.
fn at_a_time() -> usize {
    let processors = thread::available_parallelism().map_or(AT_A_TIME, usize::from);
    processors.saturating_sub(1).max(AT_A_TIME)
}

/// A line for whoever waits.
fn progress(name: &str, report: &Report, news: &News) {
    let text = match news {
        News::Booted => format!("booted {}", report.release.as_deref().unwrap_or_default()),
        News::Doctor => {
            let doctor = report.doctor.as_ref();
            let able = doctor.is_some_and(|doctor| doctor.able);
            let backend = doctor.map_or("nothing", |doctor| doctor.backend.as_str());
            format!("doctor: {}, would use {backend}", if able { "able" } else { "NOT able" })
        }
        News::Begun => return,
        News::Ended => {
            let Some(program) = report.programs.iter().rfind(|program| program.end.is_some()) else { return };
            let seconds = program.end.map_or(0.0, |end| end.seconds);
            format!("{} {}: {} in {seconds:.0} s", program.suite, program.name, program.outcome())
        }
    };
    say(&format!("{name:7} {text}"));
}
