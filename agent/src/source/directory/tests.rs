use std::os::unix::fs::symlink;
use std::time::SystemTime;

use tempfile::TempDir;

use super::*;

fn manifest(namespace: &str, name: &str, label: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{v: {label}}}}}\n"
    )
}

fn reference(namespace: &str, name: &str) -> PodReference {
    PodReference { namespace: namespace.into(), name: name.into(), uid: None }
}

struct Scene {
    directory: TempDir,
    source: Directory,
}

impl Scene {
    fn new() -> Self {
        Self::with(Namespaces::Unread)
    }

    fn with(namespaces: Namespaces) -> Self {
        let directory = TempDir::new().unwrap();
        let source = Directory::open(directory.path(), namespaces).unwrap();
        Self { directory, source }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.path(file), text).unwrap();
    }

    /// As if the file had been there for long.
    fn age(&self, file: &str) {
        let long_ago = SystemTime::now() - Duration::from_mins(1);
        File::options().write(true).open(self.path(file)).unwrap().set_modified(long_ago).unwrap();
    }

    async fn label(&self, namespace: &str, name: &str) -> Option<String> {
        let pod = self.source.pod(&reference(namespace, name)).await.unwrap()?;
        Some(pod.metadata.labels.get("v").unwrap().clone())
    }

    async fn error(&self, namespace: &str, name: &str) -> String {
        self.source.pod(&reference(namespace, name)).await.unwrap_err().to_string()
    }
}

#[tokio::test]
async fn a_pod_is_found_by_namespace_and_name_in_every_kind_of_file() {
    let scene = Scene::new();
    scene.write("a.yaml", &manifest("shop", "a", "1"));
    scene.write("b.yml", &manifest("shop", "b", "2"));
    scene.write(
        "c.json",
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"x","labels":{"v":"3"}}}"#,
    );
    assert_eq!(scene.label("shop", "a").await.unwrap(), "1");
    assert_eq!(scene.label("shop", "b").await.unwrap(), "2");
    assert_eq!(scene.label("x", "a").await.unwrap(), "3");
    assert_eq!(scene.label("x", "b").await, None);
    assert_eq!(scene.source.name(), format!("directory {}", scene.directory.path().display()));
}

#[tokio::test]
async fn other_files_and_hidden_ones_are_not_looked_at() {
    let scene = Scene::new();
    for file in ["a.txt", ".a.yaml", "a.yaml~", "a.yaml.tmp", "yaml", ".yaml", "a"] {
        scene.write(file, &manifest("shop", "a", "1"));
    }
    scene.write(".broken.yaml", "[");
    assert_eq!(scene.label("shop", "a").await, None);
}

#[tokio::test]
async fn files_may_come_change_and_go() {
    let scene = Scene::new();
    assert_eq!(scene.label("shop", "a").await, None);
    scene.write("a.yaml", &manifest("shop", "a", "1"));
    assert_eq!(scene.label("shop", "a").await.unwrap(), "1");
    for version in 2..100 {
        // The same length, often within one tick of the file system's clock.
        let label = format!("{version:03}");
        scene.write("a.yaml", &manifest("shop", "a", &label));
        assert_eq!(scene.label("shop", "a").await.unwrap(), label);
    }
    scene.write("a.new", &manifest("shop", "a", "renamed"));
    fs::rename(scene.path("a.new"), scene.path("a.yaml")).unwrap();
    assert_eq!(scene.label("shop", "a").await.unwrap(), "renamed");
    fs::remove_file(scene.path("a.yaml")).unwrap();
    assert_eq!(scene.label("shop", "a").await, None);
}

#[test]
fn a_file_that_did_not_change_is_not_read_again() {
    let scene = Scene::new();
    scene.write("old.yaml", &manifest("shop", "a", "1"));
    scene.write("young.yaml", &manifest("shop", "b", "1"));
    scene.age("old.yaml");
    let mut files = Files::new();
    let pods = |files: &Files| -> Vec<_> {
        files.values().map(|known| Arc::clone(known.content.as_ref().unwrap())).collect()
    };
    refresh(scene.directory.path(), &mut files).unwrap();
    let before = pods(&files);
    refresh(scene.directory.path(), &mut files).unwrap();
    let after = pods(&files);
    assert!(Arc::ptr_eq(&before[0], &after[0]), "old.yaml was read again");
    assert!(!Arc::ptr_eq(&before[1], &after[1]), "young.yaml could have changed unseen");
}

#[tokio::test]
async fn a_broken_file_harms_no_other_pod_and_is_named_where_a_pod_is_missing() {
    let scene = Scene::new();
    scene.write("good.yaml", &manifest("shop", "a", "1"));
    scene.write("broken.yaml", "apiVersion: v1\nkind: Pod\nspec: [");
    scene.write("deployment.yaml", "apiVersion: apps/v1\nkind: Deployment\n");
    scene.write("huge.json", &" ".repeat(10 << 20));
    fs::create_dir(scene.path("directory.yaml")).unwrap();
    symlink("nowhere", scene.path("dangling.yaml")).unwrap();
    assert_eq!(scene.label("shop", "a").await.unwrap(), "1");

    let error = scene.error("shop", "b").await;
    assert!(error.starts_with("pod shop/b is in no readable manifest; unreadable: "), "{error}");
    for (file, problem) in [
        ("broken.yaml", "(manifest is not a Pod in YAML: "),
        ("deployment.yaml", "(manifest has apiVersion \"apps/v1\" and kind \"Deployment\""),
        ("huge.json", "(manifest is longer than 1048576 bytes)"),
        ("directory.yaml", "(not a regular file)"),
        ("dangling.yaml", "(read: No such file"),
    ] {
        assert!(error.contains(&format!("{} {problem}", scene.path(file).display())), "{file}: {error}");
    }

    scene.write("broken.yaml", &manifest("shop", "b", "2"));
    assert_eq!(scene.label("shop", "b").await.unwrap(), "2");
    for file in ["deployment.yaml", "huge.json", "dangling.yaml"] {
        fs::remove_file(scene.path(file)).unwrap();
    }
    fs::remove_dir(scene.path("directory.yaml")).unwrap();
    assert_eq!(scene.label("shop", "c").await, None, "nothing is unreadable any more");
}

#[tokio::test]
async fn a_pipe_does_not_hold_anybody_up() {
    let scene = Scene::new();
    nix::unistd::mkfifo(&scene.path("pipe.yaml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let error = scene.error("shop", "a").await;
    assert!(error.contains("pipe.yaml (not a regular file)"), "{error}");
}

#[tokio::test]
async fn two_files_with_one_pod_are_an_error_that_names_both() {
    let scene = Scene::new();
    scene.write("a.yaml", &manifest("shop", "a", "1"));
    scene.write("b.yaml", &manifest("shop", "a", "2"));
    scene.write("c.yaml", &manifest("shop", "c", "3"));
    let error = scene.error("shop", "a").await;
    let (a, b) = (scene.path("a.yaml"), scene.path("b.yaml"));
    assert_eq!(error, format!("pod shop/a is in both {} and {}, remove one", a.display(), b.display()));
    assert_eq!(scene.label("shop", "c").await.unwrap(), "3");
    fs::remove_file(b).unwrap();
    assert_eq!(scene.label("shop", "a").await.unwrap(), "1");
}

#[tokio::test]
async fn a_pod_of_another_uid_is_not_the_pod() {
    let scene = Scene::new();
    scene.write(
        "a.yaml",
        "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop, uid: one, labels: {v: 1}}}",
    );
    let with_uid = |uid: &str| PodReference { uid: Some(uid.into()), ..reference("shop", "a") };
    assert!(scene.source.pod(&with_uid("one")).await.unwrap().is_some());
    assert_eq!(scene.label("shop", "a").await.unwrap(), "1", "a runtime may tell none");
    let error = scene.source.pod(&with_uid("two")).await.unwrap_err().to_string();
    assert!(
        error.starts_with("pod shop/a has uid one in ") && error.ends_with("uid two at the runtime"),
        "{error}"
    );
    scene.write("a.yaml", &manifest("shop", "a", "2"));
    assert!(scene.source.pod(&with_uid("two")).await.unwrap().is_some(), "a manifest may have none");
}

/// A mounted `ConfigMap`: `a.yaml -> ..data/a.yaml`, and `..data -> ..1` is swapped as a whole.
#[tokio::test]
async fn a_config_maps_volume_is_followed_when_it_is_swapped() {
    let scene = Scene::new();
    for version in ["..1", "..2"] {
        fs::create_dir(scene.path(version)).unwrap();
        scene.write(&format!("{version}/a.yaml"), &manifest("shop", "a", &version[2..]));
        scene.age(&format!("{version}/a.yaml"));
    }
    symlink("..1", scene.path("..data")).unwrap();
    symlink("..data/a.yaml", scene.path("a.yaml")).unwrap();
    assert_eq!(scene.label("shop", "a").await.unwrap(), "1");
    symlink("..2", scene.path("..data_tmp")).unwrap();
    fs::rename(scene.path("..data_tmp"), scene.path("..data")).unwrap();
    assert_eq!(scene.label("shop", "a").await.unwrap(), "2");
}

#[tokio::test]
async fn a_directory_that_is_missing_is_an_error() {
    let scene = Scene::new();
    let missing = scene.path("missing");
    let error = Directory::open(&missing, Namespaces::Unread).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("list pod manifests in {}: No such file", missing.display())),
        "{error}"
    );

    fs::create_dir(&missing).unwrap();
    let source = Directory::open(&missing, Namespaces::Unread).unwrap();
    fs::remove_dir(&missing).unwrap();
    let error = source.pod(&reference("shop", "a")).await.unwrap_err();
    assert!(matches!(error, SourceError::Directory { path, .. } if path == missing));
}

/// What was logged.
#[test]
fn a_broken_file_is_reported_once_for_each_change() {
    let scene = Scene::new();
    let mut files = Files::new();
    let mut look = || -> Vec<Notice> {
        (0..3).flat_map(|_| refresh(scene.directory.path(), &mut files).unwrap()).collect()
    };
    let unusable = |notice: &Notice, name: &str| matches!(notice, Notice::Unusable { path, .. } if *path == scene.path(name));
    scene.write("good.yaml", &manifest("shop", "a", "1"));
    scene.write("broken.yaml", "[");
    fs::create_dir(scene.path("directory.yaml")).unwrap();
    let first = look();
    assert_eq!(first.len(), 2, "{first:?}");
    assert!(first.iter().any(|notice| unusable(notice, "broken.yaml")), "{first:?}");
    assert!(first.iter().any(|notice| unusable(notice, "directory.yaml")), "{first:?}");

    scene.age("broken.yaml");
    let touched = look();
    assert!(matches!(touched.as_slice(), [one] if unusable(one, "broken.yaml")), "{touched:?}");
    scene.write("broken.yaml", "{");
    let changed = look();
    assert!(matches!(changed.as_slice(), [one] if unusable(one, "broken.yaml")), "{changed:?}");
    scene.write("broken.yaml", &manifest("shop", "b", "1"));
    let mended = Notice::Readable { path: scene.path("broken.yaml"), of: "shop/b".to_owned() };
    assert_eq!(look(), [mended]);
    assert_eq!(look(), []);
}

#[tokio::test]
async fn a_settled_directory_is_not_listed_for_a_pod_whose_file_is_as_it_was() {
    let scene = Scene::new();
    for (file, pod) in [("a.yaml", "a"), ("b.yaml", "b")] {
        scene.write(file, &manifest("shop", pod, "1"));
        scene.age(file);
    }
    let long_ago = SystemTime::now() - Duration::from_mins(1);
    File::open(scene.directory.path()).unwrap().set_modified(long_ago).unwrap();
    assert_eq!(scene.label("shop", "a").await.unwrap(), "1");
    // Written to in place, which the directory's stamp does not tell: nobody looks, until its own pod is asked for.
    scene.write("b.yaml", &manifest("shop", "a", "2"));
    assert_eq!(scene.label("shop", "a").await.unwrap(), "1");
    assert_eq!(scene.label("shop", "b").await, None);
    assert!(scene.error("shop", "a").await.contains("b.yaml"));
}

fn namespace(name: &str, label: &str) -> String {
    format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{{label}}}}}}}")
}

const NODE: &str = "veer.dev/proxy: node";

impl Scene {
    async fn is_asked_for(&self, name: &str) -> bool {
        let pod = self.source.pod(&reference("shop", name)).await.unwrap().unwrap();
        let among_all = self.source.pods().await.unwrap();
        let same = among_all.iter().find(|other| other.metadata.name == name).unwrap();
        assert_eq!(same, &pod);
        pod.namespace_labels.node_proxy
    }
}

#[tokio::test]
async fn a_pod_comes_with_what_its_namespace_asks_for() {
    let scene = Scene::with(Namespaces::Read);
    scene.write("a.yaml", &manifest("shop", "a", "1"));
    scene.write("other.yaml", &namespace("other", NODE));
    assert!(!scene.is_asked_for("a").await);
    scene.write("shop.yaml", &namespace("shop", NODE));
    assert!(scene.is_asked_for("a").await);
    scene.write("shop.yaml", &namespace("shop", "veer.dev/proxy: none"));
    assert!(!scene.is_asked_for("a").await);
    fs::remove_file(scene.path("shop.yaml")).unwrap();
    assert!(!scene.is_asked_for("a").await);
}

#[tokio::test]
async fn where_namespaces_do_not_count_their_manifests_are_no_errors() {
    let scene = Scene::new();
    scene.write("a.yaml", &manifest("shop", "a", "1"));
    scene.write("shop.yaml", &namespace("shop", NODE));
    assert!(!scene.is_asked_for("a").await);
    assert_eq!(scene.label("shop", "b").await, None, "nothing is unreadable");
}

#[tokio::test]
async fn a_namespace_that_changes_in_a_settled_directory_is_noticed() {
    let scene = Scene::with(Namespaces::Read);
    scene.write("a.yaml", &manifest("shop", "a", "1"));
    scene.write("shop.yaml", &namespace("shop", NODE));
    let settle = || {
        scene.age("a.yaml");
        scene.age("shop.yaml");
        let long_ago = SystemTime::now() - Duration::from_mins(1);
        File::open(scene.directory.path()).unwrap().set_modified(long_ago).unwrap();
    };
    settle();
    assert!(scene.source.pod(&reference("shop", "a")).await.unwrap().unwrap().namespace_labels.node_proxy);
    scene.write("shop.yaml", &namespace("shop", "a: b"));
    settle();
    assert!(!scene.source.pod(&reference("shop", "a")).await.unwrap().unwrap().namespace_labels.node_proxy);
}

#[tokio::test]
async fn who_depends_on_a_namespace_that_cannot_be_told_is_not_guessed_about() {
    let scene = Scene::with(Namespaces::Read);
    scene.write("a.yaml", &manifest("shop", "a", "1"));
    let own = "{apiVersion: v1, kind: Pod, metadata: {name: own, namespace: shop, labels: {v: 1, veer.dev/proxy: node}}}";
    scene.write("own.yaml", own);
    scene.write("shop.yaml", "[");
    let error = scene.error("shop", "a").await;
    let file = scene.path("shop.yaml").display().to_string();
    assert!(error.starts_with("namespace shop of pod shop/a may be in") && error.contains(&file), "{error}");
    let names = |pods: Vec<Pod>| pods.into_iter().map(|pod| pod.metadata.name).collect::<Vec<_>>();
    assert_eq!(names(scene.source.pods().await.unwrap()), ["own"]);
    assert_eq!(scene.label("shop", "own").await.unwrap(), "1", "its own label says it");

    scene.write("shop.yaml", &namespace("shop", NODE));
    scene.write("again.yaml", &namespace("shop", ""));
    let error = scene.error("shop", "a").await;
    assert!(error.starts_with("namespace shop is in both ") && error.ends_with("remove one"), "{error}");
    fs::remove_file(scene.path("again.yaml")).unwrap();
    assert!(scene.is_asked_for("a").await);
}
