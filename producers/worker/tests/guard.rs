//! The guard as a process: nobody gets away from it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// No process of a command may be left after this, whatever was killed.
const BOUND: Duration = Duration::from_secs(10);

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
    let orders = guard.stdin.as_mut().expect("piped");
    orders.write_all(order(script, mark).as_bytes()).expect("written");
    let output = BufReader::new(guard.stdout.take().expect("piped"));
    (guard, output)
}

fn order(script: &str, mark: &str) -> String {
    let order = serde_json::json!({
        "program": "sh", "arguments": ["-c", script], "directory": "/",
        "environment": {"PATH": std::env::var("PATH").expect("PATH"), "MARK": mark},
    });
    format!("{order}\n")
}

fn report(guard: &mut Child) -> serde_json::Value {
    let mut text = String::new();
    guard.stderr.take().expect("piped").read_to_string(&mut text).expect("readable");
    guard.wait().expect("ended");
    let first = text.lines().next().unwrap_or_default();
    serde_json::from_str(first).unwrap_or_else(|error| panic!("{error}: {text:?}"))
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
    kill_process(Pid::from_child(&guard), Signal::TERM).expect("it runs");
    assert_eq!(report(&mut guard), serde_json::json!({"end": "killed", "left": 0}));
    assert_eq!(marked(&mark), Vec::<String>::new());
}

#[test]
fn a_killed_command_is_told_from_one_that_exits() {
    let (mut guard, _output) = start("kill -SEGV $$", "segv");
    assert_eq!(report(&mut guard), serde_json::json!({"end": {"signaled": {"signal": 11}}, "left": 0}));
}

/// Looks in a row that must find nothing: one look may miss a process that is just becoming another.
const LOOKS: u32 = 10;

/// Waits until no process with the mark is left; answers how long that took.
fn none_is_left(what: &str, mark: &str) -> Duration {
    let begun = Instant::now();
    let (mut looks, mut gone) = (0, Duration::ZERO);
    loop {
        let left = marked(mark);
        if left.is_empty() {
            gone = if looks == 0 { begun.elapsed() } else { gone };
            looks += 1;
            if looks == LOOKS {
                return gone;
            }
        } else {
            looks = 0;
        }
        assert!(begun.elapsed() < BOUND, "{what}: {} processes are left: {left:?}", left.len());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Everything that a build does to get away, or to keep those busy who hunt it.
fn escapes(folder: &Path) -> Vec<(&'static str, String)> {
    // A script that starts itself again in a new session, and ends: each of them lives for a moment only.
    let chain = folder.join("chain");
    fs::write(&chain, "#!/bin/sh\ntrap '' TERM HUP INT\nsetsid \"$0\" &\n").expect("written");
    fs::set_permissions(&chain, fs::Permissions::from_mode(0o755)).expect("set");
    let chains = format!("for n in 1 2 3; do {} & done; echo started; sleep 300", chain.display());
    vec![
        ("daemons", format!("{DAEMONS} sleep 300")),
        ("forks in a loop", "trap '' TERM; echo started; while :; do sleep 300 & sleep 0.002; done".into()),
        ("a chain of forks", chains),
        ("fills its pipe", "echo started; exec yes".into()),
        ("closes everything", "echo started; exec 0<&- 1>&- 2>&-; setsid sleep 300 & exec sleep 300".into()),
        ("stops itself", "echo started; (sleep 300 &); kill -STOP $$".into()),
        ("kills its group", "setsid sleep 300 & echo started; sleep 300 & kill -9 0".into()),
    ]
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The guard below a keeper, as long as its command lives.
fn guard_of(keeper: &Child) -> Option<u32> {
    let processes = fs::read_dir("/proc").expect("readable").flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid| parent_of(*pid) == Some(keeper.id()))
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("not 0");
    // It may have ended by itself.
    let _ = kill_process(pid, Signal::KILL);
}

/// Ends whatever a test could leave of its scripts' files.
fn forget(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn whoever_is_killed_nothing_is_left_of_a_command_that_resists() {
    type Killing = fn(&mut Child);
    let killings: [(&str, Killing); 4] = [
        ("the worker", |keeper| drop(keeper.stdin.take())),
        ("the guard", |keeper| guard_of(keeper).into_iter().for_each(kill)),
        ("the keeper", |keeper| kill(keeper.id())),
        ("worker and keeper", |keeper| {
            drop(keeper.stdin.take());
            kill(keeper.id());
        }),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    for (escape, script) in escapes(folder.path()) {
        for (killed, killing) in killings {
            let mark = mark(&format!("{escape}-{killed}").replace(' ', "-"));
            let (mut keeper, mut output) = start(&script, &mark);
            wait_for_start(&mut output);
            killing(&mut keeper);
            let took = none_is_left(&format!("{escape}; {killed} was killed"), &mark);
            println!("{escape}: {killed} was killed; nothing is left after {took:?}");
            forget(&mut keeper);
        }
    }
}

#[test]
fn a_command_that_kills_its_guard_is_killed_by_the_keeper_who_says_so() {
    let mark = mark("patricide");
    let (mut keeper, mut output) = start(&format!("{DAEMONS} kill -9 $PPID; sleep 300"), &mark);
    wait_for_start(&mut output);
    assert_eq!(report(&mut keeper), serde_json::json!({"end": {"lost": {"signal": 9}}, "left": 0}));
    assert_eq!(marked(&mark), Vec::<String>::new());
}

#[test]
fn the_kernel_takes_builds_first_when_memory_runs_out() {
    let (mut keeper, mut output) = start("cat /proc/$PPID/oom_score_adj /proc/self/oom_score_adj", "memory");
    let mut scores = String::new();
    output.read_to_string(&mut scores).expect("readable");
    let scores: Vec<i32> = scores.lines().map(|line| line.parse().expect("a number")).collect();
    assert_eq!(scores, [500, 500]);
    report(&mut keeper);
}

/// The worker's side of the next test, in a process of its own.
#[test]
#[ignore = "it is started by a test, as a worker"]
fn plays_a_worker() {
    let Ok(mark) = std::env::var("PLAYS_WORKER") else { return };
    let (mut keeper, _output) = start(&format!("{DAEMONS} sleep 300"), &mark);
    keeper.wait().expect("ended");
}

#[test]
fn a_worker_killed_at_any_moment_leaves_nothing() {
    let own = std::env::current_exe().expect("this test");
    let mut slowest = Duration::ZERO;
    for round in 0..30 {
        let mark = mark(&format!("moment-{round}"));
        let mut worker = Command::new(&own)
            .args(["--exact", "plays_a_worker", "--ignored", "--nocapture"])
            .env("PLAYS_WORKER", &mark)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        // From before the guard is started until after the daemons are. This waits for nothing: it is what is tried.
        std::thread::sleep(Duration::from_millis(4 * round));
        forget(&mut worker);
        // A guard may just be starting: none may be left either, and they have no mark.
        let begun = Instant::now();
        while !guards_of(&mark).is_empty() || !marked(&mark).is_empty() {
            assert!(begun.elapsed() < BOUND, "round {round}: {:?} are left", marked(&mark));
            std::thread::sleep(Duration::from_millis(5));
        }
        slowest = slowest.max(begun.elapsed());
    }
    println!("a worker killed at 30 moments: nothing is left after {slowest:?} at most");
}

/// Guards and keepers of this round's worker: they inherited its environment.
fn guards_of(mark: &str) -> Vec<u32> {
    let wanted = format!("PLAYS_WORKER={mark}");
    let processes = fs::read_dir("/proc").expect("readable").flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    let has_mark = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
    };
    pids.filter(has_mark).collect()
}

#[test]
fn a_worker_that_dies_before_or_within_its_order_leaves_no_guard() {
    let half = order("sleep 300", "half");
    for told in [&b""[..], &half.as_bytes()[..half.len() / 2]] {
        let (mut keeper, mut orders) = idle_guard();
        orders.write_all(told).expect("written");
        drop(orders);
        assert_eq!(report(&mut keeper), serde_json::json!({"end": "killed", "left": 0}));
    }
}

fn idle_guard() -> (Child, ChildStdin) {
    let mut guard = Command::new(env!("CARGO_BIN_EXE_longshore-guard"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the guard starts");
    let orders = guard.stdin.take().expect("piped");
    (guard, orders)
}
