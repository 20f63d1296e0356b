//! Where veer does not go in, or not yet, and what it says.

use super::*;

const LIST: &str = r#"{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}"#;
const PLAIN: &str = r#"{"name":"n","cniVersion":"1.0.0","type":"bridge"}"#;

#[track_caller]
fn refused(before: &Directory, wish: &Wish, waits: bool, says: &str) {
    let error = plan(before, wish).unwrap_err();
    assert!(error.to_string().contains(says), "{error}");
    assert_eq!(error.is_waited_for(), waits, "{error}");
}

#[test]
fn without_a_network_it_waits() {
    refused(&directory([]), &wish(None), true, "no network to be chained to yet");
    let lo = directory([("99-loopback.conf", r#"{"name":"lo","cniVersion":"0.3.1","type":"loopback"}"#)]);
    refused(&lo, &wish(None), true, "no network to be chained to yet");
    let named = Wish { primary: Some("10-a.conflist".to_owned()), ..wish(None) };
    refused(
        &directory([("20-b.conflist", LIST)]),
        &named,
        true,
        "10-a.conflist, the file of the primary network",
    );
}

#[test]
fn a_list_that_brings_up_lo_is_a_network_if_a_drop_in_makes_it_one() {
    let lo = r#"{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"loopback"}]}"#;
    let before =
        directory([("00-lo.conflist", lo), ("10-other.conflist", LIST), ("n/10-bridge.conf", PLAIN)]);
    let file = |reads_dropins| installed(&before, &Wish { reads_dropins, ..wish(None) }).1.primary;
    assert_eq!(file(true), "00-lo.conflist");
    // A runtime that does not read it has `lo` there and nothing else.
    assert_eq!(file(false), "10-other.conflist");
}

#[test]
fn a_first_file_that_is_half_written_is_waited_for_and_may_be_passed_over() {
    for half in ["", "  \n", r#"{"name":"n","plug"#, r#"{"name":"n","plugins":[]}"#] {
        let before = directory([("05-a.conflist", half), ("10-b.conflist", LIST)]);
        refused(&before, &wish(None), true, "05-a.conflist comes first, and ");
        let (_, placed) = installed(&before, &Wish { passes_broken: true, ..wish(None) });
        assert_eq!(placed.file, "10-b.conflist");
        assert!(matches!(placed.notes.as_slice(), [Note::BrokenBefore { .. }]), "{placed:?}");
    }
}

#[test]
fn a_version_that_the_plugin_does_not_speak_would_fail_each_add() {
    for (version, says) in [
        (r#""cniVersion":"0.2.0","#, "0.2.0"),
        (r#""cniVersion":"1.2.0","#, "1.2.0"),
        ("", "0.1.0, because it names none"),
    ] {
        let list = format!(r#"{{"name":"n",{version}"plugins":[{{"type":"bridge"}}]}}"#);
        refused(
            &directory([("1.conflist", &list)]),
            &wish(None),
            false,
            &format!("is of CNI version {says}"),
        );
    }
    let several = r#"{"name":"n","cniVersions":["9.0.0","1.0.0"],"plugins":[{"type":"bridge"}]}"#;
    installed(&directory([("1.conflist", several)]), &wish(None));
}

#[test]
fn multus_is_wrapped_only_if_it_is_tencents() {
    for mode in [Mode::Chained, Mode::Owned] {
        for case in ["multus-thin", "multus-thick"] {
            refused(&golden(case), &wish(Some(mode)), false, "it would be called by its own primary network");
        }
        installed(&golden("tke-vpc-cni"), &wish(Some(mode)));
    }
    refused(&golden("tke-vpc-cni"), &wish(Some(Mode::Multus)), false, "take mode auto");
    let openshifts = "10-ovn-kubernetes.conf, which Multus delegates to, is one plugin";
    refused(&golden("multus-elsewhere"), &wish(None), false, openshifts);
    let list =
        r#"{"name":"m","cniVersion":"0.3.1","type":"multus-shim","clusterNetwork":"/x/10-a.conflist"}"#;
    refused(&directory([("00-multus.conf", list)]), &wish(None), true, "--cni-conf-dir");
    let plain = directory([
        (
            "00-multus.conf",
            r#"{"name":"m","cniVersion":"0.3.1","type":"multus-shim","clusterNetwork":"/x/10-a.conf"}"#,
        ),
        ("10-a.conf", PLAIN),
    ]);
    refused(&plain, &wish(None), false, "10-a.conf, which Multus delegates to, is one plugin");
}

#[test]
fn what_a_mode_cannot_do_is_said_with_the_mode_that_can() {
    let conf = directory([("1.conf", PLAIN)]);
    refused(&conf, &wish(Some(Mode::Dropin)), false, "take mode owned or chained");
    let both = directory([("1.conf", PLAIN), ("1.conflist", LIST)]);
    refused(&both, &wish(Some(Mode::Chained)), false, "take mode owned");
    let only = LIST.replace(r#""name""#, r#""loadOnlyInlinedPlugins":"True","name""#);
    let dropin = Wish { reads_dropins: true, ..wish(Some(Mode::Dropin)) };
    refused(&directory([("1.conflist", &only)]), &dropin, false, "loadOnlyInlinedPlugins");
    let mut link = directory([("1.conflist", LIST)]);
    link.files.get_mut("1.conflist").unwrap().is_link = true;
    refused(&link, &wish(Some(Mode::Chained)), false, "symbolic link");
    assert_eq!(installed(&link, &wish(None)).1.mode, Mode::Owned);
    let before_all = directory([("00-00-a.conflist", LIST)]);
    refused(
        &before_all,
        &wish(Some(Mode::Owned)),
        false,
        "00-00-a.conflist sorts before 00-00-veer.conflist",
    );
    refused(
        &directory([("1.conflist", r#"{"cniVersion":"1.0.0","plugins":[{"type":"b"}]}"#)]),
        &wish(None),
        false,
        "\"name\"",
    );
}

#[test]
fn a_primary_that_is_not_the_first_is_told() {
    let before = directory([("1.conflist", LIST), ("2.conflist", LIST)]);
    let named = |mode| Wish { primary: Some("2.conflist".to_owned()), ..wish(mode) };
    let (_, placed) = installed(&before, &named(None));
    assert_eq!(placed.notes, [Note::NotFirst { first: "1.conflist".to_owned() }]);
    assert!(!placed.is_effective());
    assert!(installed(&before, &named(Some(Mode::Owned))).1.is_effective());
    let lo = r#"{"name":"lo","cniVersion":"0.3.1","type":"loopback"}"#;
    let (_, placed) = installed(&directory([("1.conflist", LIST), ("00-lo.conf", lo)]), &wish(None));
    assert_eq!(placed.notes, [Note::NotFirst { first: "00-lo.conf".to_owned() }]);
}

#[test]
fn libccnis_directory_is_taken_where_the_runtime_is_known_to_read_it() {
    let before = directory([("1.conflist", LIST)]);
    let knows = |mode| Wish { reads_dropins: true, ..wish(mode) };
    let (after, placed) = installed(&before, &knows(None));
    assert_eq!((placed.mode, placed.file.as_str()), (Mode::Dropin, "n/90-veer.conf"));
    assert_eq!(after.files["1.conflist"], before.files["1.conflist"]);
    assert_eq!(called(&after, true), ["bridge", VEER]);
    assert!(placed.is_effective() && !installed(&before, &wish(Some(Mode::Dropin))).1.is_effective());
    // Never both: a list that has it keeps the directory empty, and so does somebody else's file.
    let (chained, _) = installed(&before, &wish(None));
    assert_eq!(called(&installed(&chained, &knows(None)).0, true), ["bridge", VEER]);
    let theirs = directory([("1.conflist", LIST), ("n/10-x.conf", r#"{"type":"veer-cni"}"#)]);
    assert_eq!(plan(&theirs, &knows(None)).unwrap().steps, []);
}
