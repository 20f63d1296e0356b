use super::*;

#[test]
fn each_slot_but_the_first_has_a_source_that_tells_it() {
    for slot in 1..4 {
        assert_eq!(DatagramRecord::slot_of_source(&DatagramRecord::slot_source(slot)), Some(slot));
    }
    for other in
        [[127, 53, 0, 0], [127, 53, 0, 1], [127, 53, 0, 5], [127, 53, 1, 2], [127, 0, 0, 2], [10, 53, 0, 2]]
    {
        assert_eq!(DatagramRecord::slot_of_source(&Address::v4(other)), None, "{other:?}");
    }
}

#[test]
fn a_port_set_holds_what_was_put_in_and_nothing_else() {
    let ports = [0, 1, 63, 64, 65, 15001, 32768, 65534, 65535];
    let set: PortSet = ports.map(Port::new).into_iter().collect();
    let held: Vec<u16> = (0..=u16::MAX).filter(|port| set.contains(Port::new(*port))).collect();
    assert_eq!(held, ports);
    let all: PortSet = (0..=u16::MAX).map(Port::new).collect();
    assert_eq!(all, PortSet([u64::MAX; PortSet::WORDS]));
}
