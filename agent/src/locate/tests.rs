//! The choice of a netns, where there is one, several or a wrong one.

use super::*;

const UID: &str = "7c1e34f0-95b4-4b63-8a50-2f2d9d5bb0e9";
const OTHER: &str = "00000000-95b4-4b63-8a50-2f2d9d5bb0e9";
const HOST: u64 = 1;

fn cart(uid: Option<&str>) -> PodReference {
    PodReference { namespace: "shop".to_owned(), name: "cart".to_owned(), uid: uid.map(str::to_owned) }
}

fn noted(container: &str, interface: &str, inode: Option<u64>, uid: Option<&str>) -> Attached {
    let attachment = Attachment {
        container_id: container.to_owned(),
        netns: format!("/run/netns/{container}"),
        interface: interface.to_owned(),
        network: "pods".to_owned(),
        pod: Some(cart(uid)),
    };
    Attached { attachment, inode }
}

fn process(pid: u32, uid: &str, inode: u64) -> Process {
    Process { pid, pod_uid: uid.to_owned(), inode }
}

fn seen(attached: &[Attached], processes: &[Process]) -> Seen {
    Seen {
        attached: attached.to_vec(),
        processes: processes.to_vec(),
        own: [HOST].into(),
        named: [(9, "/run/netns/cni-9".to_owned())].into(),
    }
}

#[test]
fn what_the_runtime_has_noted_is_believed_while_it_is_there() {
    let located = locate(&cart(Some(UID)), &seen(&[noted("a", "eth0", Some(7), Some(UID))], &[])).unwrap();
    assert_eq!((located.attachment.container_id.as_str(), located.inode), ("a", 7));
    let gone = seen(&[noted("a", "eth0", None, Some(UID))], &[]);
    assert_eq!(locate(&cart(Some(UID)), &gone), Err(NotLocated::NotRunning));
    let host = seen(&[noted("a", "eth0", Some(HOST), Some(UID))], &[]);
    assert_eq!(locate(&cart(Some(UID)), &host), Err(NotLocated::NotRunning));
}

#[test]
fn a_note_on_an_earlier_pod_of_the_name_is_not_on_this_one() {
    let earlier = seen(&[noted("a", "eth0", Some(7), Some(OTHER))], &[]);
    assert_eq!(locate(&cart(Some(UID)), &earlier), Err(NotLocated::NotRunning));
    let unsaid = seen(&[noted("a", "eth0", Some(7), None)], &[]);
    assert_eq!(locate(&cart(Some(UID)), &unsaid).unwrap().inode, 7);
}

#[test]
fn of_several_interfaces_it_is_the_one_that_kubernetes_asks_for() {
    let multus = [noted("a", "net1", Some(7), None), noted("a", "eth0", Some(7), None)];
    let located = locate(&cart(Some(UID)), &seen(&multus, &[])).unwrap();
    assert_eq!(located.attachment.interface, "eth0");
}

#[test]
fn of_two_sandboxes_it_is_the_one_with_processes() {
    let two = [noted("a", "eth0", Some(7), None), noted("b", "eth0", Some(8), None)];
    let inhabited = seen(&two, &[process(4711, UID, 8)]);
    assert_eq!(locate(&cart(Some(UID)), &inhabited).unwrap().attachment.container_id, "b");
    assert_eq!(locate(&cart(Some(UID)), &seen(&two, &[])), Err(NotLocated::NotRunning), "nobody can tell");
}

#[test]
fn without_a_note_its_processes_tell_unless_one_has_gone_elsewhere() {
    let one = seen(&[], &[process(1, UID, HOST), process(2, UID, 7), process(3, UID, 7)]);
    let located = locate(&cart(Some(UID)), &one).unwrap();
    assert_eq!((located.inode, located.attachment.netns.as_str()), (7, "/proc/2/ns/net"));
    let named = locate(&cart(Some(UID)), &seen(&[], &[process(2, UID, 9)])).unwrap();
    assert_eq!(named.attachment.netns, "/run/netns/cni-9");
    let two = seen(&[], &[process(2, UID, 7), process(3, UID, 8)]);
    assert_eq!(locate(&cart(Some(UID)), &two), Err(NotLocated::Several { count: 2 }));
    assert_eq!(locate(&cart(None), &one), Err(NotLocated::NotRunning), "nothing says whose they are");
}

#[test]
fn the_nodes_netns_and_that_of_two_pods_are_never_taken() {
    let host = seen(&[], &[process(2, UID, HOST)]);
    assert_eq!(locate(&cart(Some(UID)), &host), Err(NotLocated::Host));
    let shared = seen(&[noted("a", "eth0", Some(7), None)], &[process(2, UID, 7), process(3, OTHER, 7)]);
    assert_eq!(locate(&cart(Some(UID)), &shared), Err(NotLocated::Shared { other: OTHER.to_owned() }));
}
