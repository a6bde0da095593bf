//! The examples of hooks in `infra/hooks`, with load balancers that the test plays.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex},
};

fn hook(script: &str, what: &str, variables: &[(&str, &str)]) -> Output {
    let script = Path::new("../../infra/hooks").join(script);
    let own = [("LONGSHORE_SERVICE", "web"), ("NODE", "n-1"), ("PORT", "28000"), ("PATH", "/usr/bin:/bin")];
    Command::new(script).arg(what).env_clear().envs(own).envs(variables.iter().copied()).output().expect("it runs")
}

#[track_caller]
fn passes(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn nginx_gets_a_file_and_a_reload() {
    let folder = tempfile::tempdir().expect("a folder");
    let (upstreams, reloads) = (folder.path().to_string_lossy().into_owned(), folder.path().join("reloads"));
    let reload = format!("tee -a {}", reloads.display());
    let run = |what: &str, reload: &str| {
        hook(
            "nginx-upstream.sh",
            what,
            &[("NGINX_UPSTREAMS", &upstreams), ("NGINX_RELOAD", reload), ("NGINX_DRAIN", "0")],
        )
    };
    let file = |name: &str| -> PathBuf { folder.path().join(name) };
    let read = || std::fs::read_to_string(file("web.conf")).expect("it was written");
    passes(&run("register", &reload));
    assert_eq!(read(), "upstream web { server 127.0.0.1:28000; }\n");
    assert!(reloads.exists(), "nginx was told");
    passes(&run("drain", "true"));
    assert_eq!(read(), "upstream web { server 127.0.0.1:28000 down; }\n");

    let refused = run("register", "false");
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("did not take"));
    assert!(read().contains("down"), "as before");
    assert!(!file("web.conf.before").exists() && !file("web.conf.new").exists(), "nothing is left");
    assert!(!run("begin", "true").status.success());
}

/// Answers each command as HAProxy does, and keeps what it was told. The sessions of `web/n-1` end one by one.
fn haproxy(known: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let address = listener.local_addr().expect("bound").to_string();
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = told.clone();
    std::thread::spawn(move || {
        let mut sessions = 2;
        for mut stream in listener.incoming().flatten() {
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).expect("a command");
            let answer = if line.starts_with("show stat") {
                let stat = format!("# pxname,svname,qcur,qmax,scur\nother,n-1,0,0,9\n{known},0,0,{sessions}\n\n");
                sessions = i32::max(sessions - 1, 0);
                stat
            } else if line.contains(&known.replace(',', "/")) {
                "\n".to_owned()
            } else {
                "No such server.\n\n".to_owned()
            };
            heard.lock().expect("sound").push(line.trim().to_owned());
            stream.write_all(answer.as_bytes()).expect("it listens");
        }
    });
    (address, told)
}

#[test]
fn haproxy_is_told_by_its_socket() {
    let (address, told) = haproxy("web,n-1");
    let told = || std::mem::take(&mut *told.lock().expect("sound"));
    let variables = [("HAPROXY_SOCKET", address.as_str()), ("HAPROXY_HOST", "10.0.0.7")];
    passes(&hook("haproxy-socket.sh", "register", &variables));
    assert_eq!(told(), ["set server web/n-1 addr 10.0.0.7 port 28000", "set server web/n-1 state ready"]);
    passes(&hook("haproxy-socket.sh", "drain", &variables));
    let expected =
        ["set server web/n-1 state drain", "show stat", "show stat", "show stat", "set server web/n-1 state maint"];
    assert_eq!(told(), expected, "it waits for open sessions");
}

#[test]
fn a_backend_that_haproxy_does_not_know_fails_the_hook() {
    let (address, _) = haproxy("mail,n-1");
    let refused = hook("haproxy-socket.sh", "register", &[("HAPROXY_SOCKET", address.as_str())]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("No such server"));
    let unreachable = hook("haproxy-socket.sh", "drain", &[("HAPROXY_SOCKET", "127.0.0.1:1")]);
    assert!(!unreachable.status.success());
}
