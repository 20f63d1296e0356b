//! `socket-maker`: creates sockets on request; see `veer_tests::socket_maker`.

fn main() -> anyhow::Result<()> {
    veer_tests::socket_maker::serve(std::io::stdin())
}
