//! Every vendor's directory through insertion, drift, upgrade and removal.

use super::*;

/// Each vendor's directory in mode `auto`: what the files are then.
#[test]
fn each_vendors_files_get_veer_and_are_otherwise_as_they_were() {
    for (case, before) in vendors() {
        let text = match plan(&before, &wish(None)) {
            Ok(planned) => {
                let (after, _) = installed(&before, &wish(None));
                let steps: Vec<String> =
                    planned.steps.iter().map(|step| format!("{} ", step.path())).collect();
                let notes: Vec<String> =
                    planned.placed.notes.iter().map(|note| format!("\nnote: {note}")).collect();
                let Placed { mode, file, primary, network, vendor, .. } = planned.placed;
                let vendor = vendor.unwrap_or_else(|| "somebody".to_owned());
                format!(
                    "{mode}: {file}, for {primary} (network {network}) of {vendor}; changes {}{}\n{}",
                    steps.concat(),
                    notes.concat(),
                    shown(&after, &before)
                )
            }
            Err(error) => format!("{}: {error}\n", if error.is_waited_for() { "waits" } else { "refuses" }),
        };
        insta::with_settings!({ snapshot_path => "../golden-after", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(case, text);
        });
    }
}

/// The modes that a vendor's directory may be in, with a runtime that knows all of them.
fn wishes(before: &Directory) -> Vec<Wish> {
    let modes = [None, Some(Mode::Chained), Some(Mode::Owned), Some(Mode::Multus), Some(Mode::Dropin)];
    let wishes =
        modes.into_iter().map(|mode| Wish { reads_dropins: mode == Some(Mode::Dropin), ..wish(mode) });
    wishes.filter(|wish| plan(before, wish).is_ok()).collect()
}

fn other_entry(wish: &Wish) -> Wish {
    let entry =
        Entry { log_level: "debug".to_owned(), exclude_namespaces: ["a".to_owned()].into(), ..entry() };
    Wish { entry, ..wish.clone() }
}

#[test]
fn in_every_mode_a_vendors_bytes_come_back() {
    let mut lives = 0;
    for (case, before) in vendors() {
        for wish in wishes(&before) {
            let (first, placed) = installed(&before, &wish);
            let has_us = called(&first, wish.reads_dropins).iter().any(|kind| kind == VEER);
            assert!(has_us || placed.mode == Mode::Multus, "{case} {:?}: {first:?}", wish.mode);

            // The vendor starts anew and writes what it always does.
            let mut drifted = first.clone();
            for (name, file) in &before.files {
                drifted.files.insert(name.clone(), file.clone());
            }
            let (repaired, _) = installed(&drifted, &wish);
            assert_eq!(repaired, first, "{case} {:?} after the vendor's start", wish.mode);

            let (upgraded, _) = installed(&repaired, &other_entry(&wish));
            assert!(
                before.mentions() == upgraded.mentions() || upgraded != repaired,
                "{case} {:?}: the entry is another one",
                wish.mode
            );
            assert_eq!(installed(&upgraded, &wish).0, first, "{case} {:?} back again", wish.mode);
            for state in [first, upgraded] {
                let after = taken(&state, &removal(&state), |_| {});
                assert_eq!(after, before, "{case} {:?} in the end", wish.mode);
                assert_eq!(removal(&after), []);
            }
            lives += 1;
        }
    }
    assert!(lives > 60, "{lives}");
}

#[test]
fn one_mode_after_another_leaves_nothing_of_the_one_before() {
    for (case, before) in vendors() {
        let wishes = wishes(&before);
        for first in &wishes {
            for second in &wishes {
                let (state, _) = installed(&before, first);
                let steps = plan(&state, second).unwrap().steps;
                let has_us = |state: &Directory| {
                    let types = called(state, true);
                    assert!(!types.is_empty(), "{case} {:?} to {:?}: no network", first.mode, second.mode);
                    types.iter().any(|kind| kind == VEER)
                };
                let had_us = has_us(&state);
                let after = taken(&state, &steps, |between| {
                    assert!(
                        has_us(between) || !had_us,
                        "{case} {:?} to {:?}: {between:?}",
                        first.mode,
                        second.mode
                    );
                });
                assert_eq!(
                    after,
                    installed(&before, second).0,
                    "{case} {:?} to {:?}",
                    first.mode,
                    second.mode
                );
            }
        }
    }
}

#[test]
fn a_conf_that_its_vendor_puts_back_is_put_aside_again_with_what_is_new_in_it() {
    let before = golden("tke-globalrouter");
    let (mut state, placed) = installed(&before, &wish(Some(Mode::Chained)));
    assert_eq!(placed.file, "00-multus.conflist");
    assert!(!state.files.contains_key("00-multus.conf"));
    let newer = golden("tke-vpc-cni").files["00-multus.conf"].clone();
    state.files.insert("00-multus.conf".to_owned(), newer.clone());
    let (after, _) = installed(&state, &wish(Some(Mode::Chained)));
    assert_eq!(after.files["00-multus.conf.veer-original"], newer);
    assert_eq!(taken(&after, &removal(&after), |_| {}).files["00-multus.conf"], newer);
}

#[test]
fn a_copy_follows_its_primary_and_stands_in_until_then() {
    let before = golden("tke-globalrouter");
    let (mut state, placed) = installed(&before, &wish(None));
    assert_eq!((placed.mode, placed.file.as_str()), (Mode::Owned, OWNED));
    state.files.insert("00-multus.conf".to_owned(), golden("tke-vpc-cni").files["00-multus.conf"].clone());
    assert!(called(&state, false).contains(&VEER.to_owned()), "no moment without veer");
    let (after, _) = installed(&state, &wish(None));
    let copy = String::from_utf8(after.files[OWNED].content.clone().unwrap()).unwrap();
    assert!(copy.contains("tke-route-eni") && copy.contains(r#""name": "multus-cni""#), "{copy}");
}

#[test]
fn multus_is_told_to_be_started_again_where_it_holds_an_older_copy() {
    let before = golden("multus-thin");
    let (state, placed) = installed(&before, &wish(None));
    assert_eq!((placed.mode, placed.file.as_str()), (Mode::Multus, "10-calico.conflist"));
    assert!(!placed.is_effective());
    // It copies its primary network when it starts.
    let mut started = state.clone();
    let mut multus: serde_json::Value =
        serde_json::from_slice(state.files["00-multus.conf"].content.as_ref().unwrap()).unwrap();
    multus["delegates"][0] =
        serde_json::from_slice(state.files["10-calico.conflist"].content.as_ref().unwrap()).unwrap();
    started.files.insert("00-multus.conf".to_owned(), File::new(multus.to_string().into_bytes()));
    assert!(installed(&started, &wish(None)).1.is_effective());
    let removed = taken(&started, &removal(&started), |_| {});
    assert_eq!(removed.mentions(), ["00-multus.conf"], "its copy still calls the plugin, which has to stay");
}

#[test]
fn what_cilium_has_moved_is_cleaned_as_well() {
    let before = golden("kindnet");
    let (mut state, _) = installed(&before, &wish(Some(Mode::Owned)));
    let moved = |name: &str| format!("{name}{MOVED_BY_CILIUM}");
    for name in [OWNED, "10-kindnet.conflist"] {
        let file = state.files.remove(name).unwrap();
        state.files.insert(moved(name), file);
    }
    let after = taken(&state, &removal(&state), |_| {});
    assert_eq!(after.files.keys().collect::<Vec<_>>(), [&moved("10-kindnet.conflist")]);
    let waits = plan(&state, &wish(None)).unwrap_err();
    assert!(waits.is_waited_for() && waits.to_string().contains("cni.exclusive=false"), "{waits}");
}
