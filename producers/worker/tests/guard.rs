//! The guard as a process: nobody gets away from it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdout, Command, Stdio},
};

/// Everything that a daemon does to get away: a new session, two forks, ignored signals.
const DAEMONS: &str = "\
    setsid sleep 300 & \
    (setsid sh -c 'trap \"\" TERM HUP INT; sleep 300 & sleep 300 & wait' &) ; \
    (sh -c 'nohup setsid sh -c \"(sleep 300 &)\" >/dev/null 2>&1 &') ; \
    echo started; ";

fn start(script: &str, mark: &str) -> (Child, BufReader<ChildStdout>) {
    let mut guard = Command::new(env!("CARGO_BIN_EXE_longshore-guard"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the guard starts");
    let order = serde_json::json!({
        "program": "sh", "arguments": ["-c", script], "directory": "/",
        "environment": {"PATH": std::env::var("PATH").expect("PATH"), "MARK": mark},
    });
    let orders = guard.stdin.as_mut().expect("piped");
    orders.write_all(format!("{order}\n").as_bytes()).expect("written");
    let output = BufReader::new(guard.stdout.take().expect("piped"));
    (guard, output)
}

fn report(guard: &mut Child) -> serde_json::Value {
    let mut text = String::new();
    guard.stderr.take().expect("piped").read_to_string(&mut text).expect("readable");
    guard.wait().expect("ended");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

/// Processes whose environment has the mark.
fn marked(mark: &str) -> Vec<String> {
    let wanted = format!("MARK={mark}");
    let processes = fs::read_dir("/proc").expect("readable").flatten();
    let has_mark = |environment: Vec<u8>| environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes());
    let named = processes.filter(|process| fs::read(process.path().join("environ")).is_ok_and(has_mark));
    named.map(|process| process.file_name().to_string_lossy().into_owned()).collect()
}

fn mark(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

fn wait_for_start(output: &mut BufReader<ChildStdout>) {
    let mut line = String::new();
    output.read_line(&mut line).expect("readable");
    assert_eq!(line, "started\n");
}

#[test]
fn when_the_worker_is_gone_no_process_is_left() {
    let mark = mark("gone");
    let (mut guard, mut output) = start(&format!("{DAEMONS} sleep 300"), &mark);
    wait_for_start(&mut output);
    assert!(!marked(&mark).is_empty());
    // What the kernel does when the worker dies.
    drop(guard.stdin.take());
    assert_eq!(report(&mut guard), serde_json::json!({"end": "killed", "left": 0}));
    assert_eq!(marked(&mark), Vec::<String>::new());
}

#[test]
fn daemons_end_with_the_command_that_started_them() {
    let mark = mark("daemons");
    let (mut guard, mut output) = start(&format!("{DAEMONS} exit 3"), &mark);
    wait_for_start(&mut output);
    assert_eq!(report(&mut guard), serde_json::json!({"end": {"exited": {"status": 3}}, "left": 0}));
    assert_eq!(marked(&mark), Vec::<String>::new());
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("the pipe is closed, since nobody holds it");
}

#[test]
fn a_signal_to_the_guard_kills_everything_too() {
    let mark = mark("signal");
    let (mut guard, mut output) = start(&format!("{DAEMONS} sleep 300"), &mark);
    wait_for_start(&mut output);
    let pid = rustix::process::Pid::from_child(&guard);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    assert_eq!(report(&mut guard), serde_json::json!({"end": "killed", "left": 0}));
    assert_eq!(marked(&mark), Vec::<String>::new());
}

#[test]
fn a_killed_command_is_told_from_one_that_exits() {
    let (mut guard, _output) = start("kill -SEGV $$", "segv");
    assert_eq!(report(&mut guard), serde_json::json!({"end": {"signaled": {"signal": 11}}, "left": 0}));
}
