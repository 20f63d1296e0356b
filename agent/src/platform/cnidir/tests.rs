use std::os::unix::fs::symlink;

use super::*;

fn bytes(directory: &Directory, name: &str) -> Vec<u8> {
    directory.files.get(name).unwrap().content.clone().unwrap()
}

fn write(path: &str, bytes: &[u8], like: Option<&str>) -> Step {
    Step::Write { path: path.to_owned(), bytes: bytes.to_vec(), like: like.map(str::to_owned) }
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = list(path).unwrap().into_iter().map(|(name, _)| name).collect();
    names.sort();
    names
}

#[test]
fn a_file_keeps_mode_and_owner_and_nothing_else_is_left() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("1.conflist");
    fs::write(&path, "old").unwrap();
    std::os::unix::fs::chown(&path, Some(123), Some(456)).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o604)).unwrap();
    let dir = CniDir::lock(scratch.path()).unwrap();
    let before = dir.read().unwrap();
    dir.take(&[write("1.conflist", b"new", Some("1.conflist")), write("2.conf", b"x", None)], &before)
        .unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (123, 456, 0o604));
    assert_eq!(bytes(&dir.read().unwrap(), "1.conflist"), b"new");
    assert_eq!(names(scratch.path()), ["1.conflist", "2.conf"]);
}

#[test]
fn what_a_vendor_wrote_since_it_was_read_is_not_overwritten() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("1.conflist");
    fs::write(&path, "old").unwrap();
    let dir = CniDir::lock(scratch.path()).unwrap();
    let before = dir.read().unwrap();
    fs::write(&path, "newer").unwrap();
    let taken = dir.take(&[write("1.conflist", b"ours", None)], &before);
    assert!(matches!(taken, Err(DirError::Changed { .. })), "{taken:?}");
    assert_eq!(fs::read(&path).unwrap(), b"newer");
    fs::remove_file(&path).unwrap();
    let taken = dir.take(&[write("1.conflist", b"ours", None)], &before);
    assert!(matches!(taken, Err(DirError::Changed { .. })), "{taken:?}");
    assert_eq!(names(scratch.path()), Vec::<String>::new());
}

#[test]
fn directories_of_networks_are_read_and_go_when_they_are_empty() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = CniDir::lock(scratch.path()).unwrap();
    dir.take(&[write("net/90-veer.conf", b"{}", None)], &Directory::default()).unwrap();
    fs::write(scratch.path().join("net/notes"), "").unwrap();
    assert_eq!(bytes(&dir.read().unwrap(), "net/90-veer.conf"), b"{}");
    let remove = [Step::Remove { path: "net/90-veer.conf".to_owned() }];
    dir.take(&remove, &Directory::default()).unwrap();
    assert_eq!(names(&scratch.path().join("net")), ["notes"]);
    fs::remove_file(scratch.path().join("net/notes")).unwrap();
    dir.take(&remove, &Directory::default()).unwrap();
    assert_eq!(names(scratch.path()), Vec::<String>::new());
}

#[test]
fn links_and_what_is_no_file_are_told() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    fs::write(at("target"), "{}").unwrap();
    symlink(at("target"), at("1.conf")).unwrap();
    symlink(at("nowhere"), at("2.conf")).unwrap();
    nix::unistd::mkfifo(&at("3.conf"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(at("4.conf"), vec![b' '; 2 << 20]).unwrap();
    let found = read(scratch.path()).unwrap().files;
    assert!(found["1.conf"].is_link && found["1.conf"].content.is_ok());
    for name in ["2.conf", "3.conf", "4.conf"] {
        assert!(found[name].content.is_err(), "{name}");
    }
}

#[test]
fn one_process_has_a_directory() {
    let scratch = tempfile::tempdir().unwrap();
    let _held = CniDir::lock(scratch.path()).unwrap();
    assert!(matches!(CniDir::lock(scratch.path()), Err(DirError::Locked { .. })));
}

#[test]
fn a_program_is_copied_once_and_again_when_it_is_not_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    let (from, to) = (scratch.path().join("from"), scratch.path().join("bin/veer-cni"));
    fs::write(&from, "one").unwrap();
    assert!(install_program(&from, &to).unwrap());
    assert!(!install_program(&from, &to).unwrap());
    fs::set_permissions(&to, Permissions::from_mode(0o644)).unwrap();
    assert!(install_program(&from, &to).unwrap(), "it could not be executed");
    fs::write(&from, "two").unwrap();
    // Killed while it copied.
    fs::write(scratch.path().join("bin/.veer-veer-cni.new"), "half").unwrap();
    assert!(install_program(&from, &to).unwrap());
    assert_eq!(names(&scratch.path().join("bin")), ["veer-cni"]);
    assert_eq!(
        (fs::read(&to).unwrap().as_slice(), fs::metadata(&to).unwrap().mode() & 0o7777),
        (&b"two"[..], 0o755)
    );
    assert!(remove_program(&to).unwrap() && !remove_program(&to).unwrap());
}
