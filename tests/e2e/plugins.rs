//! Plugins of Shadowsocks (SIP003): a relay of our own that turns every byte over, at both ends.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::client::{assert_echo, socks_tunnel, try_echo};
use crate::harness::daemon::{Daemon, Setup, free_port};
use crate::harness::server::Server;
use crate::harness::status::{health, metric, named, number};
use crate::harness::{Engine, PATIENCE, eventually, scenarios};
use rustix::process::{Pid, Signal, kill_process};

scenarios!(Welcome:
    bytes_go_through_plugins_at_both_ends,
    a_plugin_that_dies_is_started_again_and_its_upstream_is_down_meanwhile,
    plugins_end_with_the_daemon_however_it_ends,
    a_reload_leaves_plugins_alone_that_have_not_changed,
    a_program_that_is_not_there_is_refused_by_its_key,
);

const RELAY: &str = r#"#!/usr/bin/env python3
import asyncio, os
env = os.environ
local = env["SS_LOCAL_HOST"], int(env["SS_LOCAL_PORT"])
remote = env["SS_REMOTE_HOST"], int(env["SS_REMOTE_PORT"])
is_server = env["SS_PLUGIN_OPTIONS"].startswith("server")
listen, dial = (remote, local) if is_server else (local, remote)
table = bytes(byte ^ 0x5A for byte in range(256))

async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data.translate(table))
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()

async def serve(reader, writer):
    try:
        far_reader, far_writer = await asyncio.open_connection(*dial)
    except OSError:
        writer.close()
        return
    await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
    writer.close()
    far_writer.close()

async def main():
    server = await asyncio.start_server(serve, *listen)
    print("relaying with", env["SS_PLUGIN_OPTIONS"], flush=True)
    await server.serve_forever()

asyncio.run(main())
"#;

const SEALED: &str = "method = \"aes-256-gcm\"\npassword = \"x\"\nplugin = \"@dir@/relay\"\n";

/// A setup with the relay in its folder. Another process writes the program: it could not be run for as long as a child
/// that somebody forks at this moment holds it open.
fn setup(engine: Engine) -> Setup {
    let setup = Setup::new(engine);
    let (source, program) = (setup.folder().join("relay.py"), setup.folder().join("relay"));
    std::fs::write(&source, RELAY).unwrap();
    let installed = Command::new("install").args(["-m", "755"]).args([&source, &program]).status().unwrap();
    assert!(installed.success());
    setup
}

fn far_config(port: u16, rest: &str) -> String {
    format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:{port}\"\nprotocol = \"shadowsocks\"\ntarget = \"direct\"\n\
         {SEALED}plugin_opts = \"server\"\n{rest}"
    )
}

fn near_config(port: u16, options: &str) -> String {
    format!(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:0\"\nprotocol = \"mixed\"\ntarget = \"out\"\n\
         [upstream.out]\nkind = \"shadowsocks\"\naddress = \"127.0.0.1:{port}\"\n{SEALED}plugin_opts = \"{options}\"\n"
    )
}

fn far(engine: Engine) -> (Daemon, u16) {
    let port = free_port();
    let daemon = setup(engine).start(&far_config(port, ""));
    // Nobody dials the plugin of a listener to see whether it listens.
    daemon.wait_line("the relay listens", |line| line.contains("relaying with server"));
    (daemon, port)
}

fn plugin(daemon: &Daemon) -> Value {
    daemon.status()["plugins"][0].clone()
}

fn pid(daemon: &Daemon) -> u32 {
    u32::try_from(number(&plugin(daemon), &["pid"])).unwrap()
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
}

fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn bytes_go_through_plugins_at_both_ends(engine: Engine) {
    let echo = Server::echo();
    let (far, port) = far(engine);
    let near = setup(engine).start(&near_config(port, "client"));
    let mut stream = socks_tunnel(near.address("in"), echo.address());
    assert_echo(&mut stream, b"hello");
    assert_echo(&mut stream, &vec![7; 1_000_000]);
    assert_eq!(plugin(&near)["state"], "ready");
    assert_eq!(plugin(&far)["remote"], format!("127.0.0.1:{port}"));
    // Without it the server hears nothing that it knows.
    let plain = near_config(port, "").replace("plugin = \"@dir@/relay\"\nplugin_opts = \"\"\n", "");
    let plain = Daemon::start(engine, &plain);
    let mut stream = socks_tunnel(plain.address("in"), echo.address());
    stream.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    try_echo(&mut stream, b"hello").unwrap_err();
}

fn a_plugin_that_dies_is_started_again_and_its_upstream_is_down_meanwhile(engine: Engine) {
    let echo = Server::echo();
    let (_far, port) = far(engine);
    let near = setup(engine).start(&near_config(port, "client"));
    let first = pid(&near);
    assert_ne!(health(&near.status(), "out"), "down");
    kill(first);
    eventually(PATIENCE, "the upstream is down", || {
        let is_counted_as_down = metric(&near.metrics(), &["ringweir_plugin_up{"]) == 0.0;
        is_counted_as_down && health(&near.status(), "out") == "down"
    });
    let status = near.status();
    let why = named(&status, "targets", "out")["why"].as_str().unwrap();
    assert!(why.contains("relay does not run: signal: 9"), "{why}");
    eventually(PATIENCE, "the upstream is back", || health(&near.status(), "out") != "down");
    let plugin = plugin(&near);
    assert_eq!(number(&plugin, &["restarts"]), 1, "{plugin}");
    assert_ne!(pid(&near), first);
    assert!(plugin["last_exit"].as_str().unwrap().contains("signal: 9"), "{plugin}");
    assert_eq!([number(&plugin, &["starts"]), number(&plugin, &["exits"])], [2, 1], "{plugin}");
    let text = near.metrics();
    let figure = |name: &str| metric(&text, &[name, "of=\"upstream\"", "name=\"out\""]);
    assert_eq!(
        ["_up{", "_starts_total{", "_exits_total{"].map(|name| figure(&format!("ringweir_plugin{name}"))),
        [1.0, 2.0, 1.0]
    );
    assert_echo(&mut socks_tunnel(near.address("in"), echo.address()), b"again");
    let events = String::from_utf8(near.ask("GET", "/events").body).unwrap();
    for event in ["plugin-started", "plugin-ended", "down"] {
        assert!(events.contains(&format!("\"{event}\"")), "{event}: {events}");
    }
}

fn plugins_end_with_the_daemon_however_it_ends(engine: Engine) {
    for signal in [Signal::TERM, Signal::KILL] {
        let mut near = setup(engine).start(&near_config(1, "client"));
        let pid = pid(&near);
        assert!(is_there(pid));
        near.signal(signal);
        near.wait_exit(PATIENCE);
        if signal == Signal::TERM {
            assert!(!is_there(pid), "it is waited for");
        }
        eventually(PATIENCE, "the plugin is gone", || !is_there(pid));
    }
}

fn a_reload_leaves_plugins_alone_that_have_not_changed(engine: Engine) {
    let near = setup(engine).start(&near_config(1, "client"));
    let first = pid(&near);
    near.reload(&format!("{}\n# the same\n", near_config(1, "client"))).unwrap();
    assert_eq!(pid(&near), first);
    near.reload(&near_config(1, "client;otherwise")).unwrap();
    near.wait_line("the other listens", |line| line.contains("relaying with client;otherwise"));
    eventually(PATIENCE, "the start is counted", || number(&plugin(&near), &["starts"]) == 2);
    assert_eq!(number(&plugin(&near), &["exits"]), 0, "it was told to end");
    assert!(!is_there(first), "the new one waits until the old one is gone");
    near.reload(&near_config(1, "").replace("plugin = \"@dir@/relay\"\nplugin_opts = \"\"\n", "")).unwrap();
    assert!(near.status().get("plugins").is_none());
}

fn a_program_that_is_not_there_is_refused_by_its_key(engine: Engine) {
    let config = near_config(1, "client").replace("@dir@/relay", "no-such-plugin");
    let (code, said) = Setup::new(engine).refused(&config);
    assert_eq!(code, 1);
    assert!(said.contains("upstream.out.plugin: there is no program \"no-such-plugin\""), "{said}");
}
