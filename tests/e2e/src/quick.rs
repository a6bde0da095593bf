//! A git repository whose builds take a moment: the program is compiled once and committed, and a build copies it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use longshore_schemas::{
    CommitSha,
    events::{BuildSpec, HealthCheck, RunSpec, StopSignal},
    http::BuildBody,
};

/// Answers any HTTP request with the text of the file beside it.
const SERVER: &str = r#"
use std::{env, fs, io::{BufRead, BufReader, Write}, net::{TcpListener, TcpStream}, thread, time::Duration};

fn main() {
    let version = fs::read_to_string("version.txt").expect("version.txt");
    let port: u16 = env::var("PORT").expect("PORT").parse().expect("a port");
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    for stream in listener.incoming().flatten() {
        let version = version.clone();
        thread::spawn(move || answer(stream, &version));
    }
}

fn answer(stream: TcpStream, version: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    write!(&stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{version}", version.len())
}
"#;

pub struct Quick {
    folder: PathBuf,
}

impl Quick {
    pub fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let quick = Self { folder: folder.to_owned() };
        fs::write(folder.join("server.rs"), SERVER)?;
        let options = ["--edition", "2021", "-C", "strip=symbols", "-o", "server", "server.rs"];
        quick.run(Command::new("rustc").args(options))?;
        quick.git(&["init", "--quiet", "--initial-branch=main"])?;
        Ok(quick)
    }

    pub fn commit(&self, version: &str) -> Result<CommitSha> {
        fs::write(self.folder.join("version.txt"), format!("{version}\n"))?;
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--message", version])?;
        self.git(&["rev-parse", "HEAD"])?.trim().parse().context("git's commit id")
    }

    fn git(&self, arguments: &[&str]) -> Result<String> {
        let person = ["-c", "user.name=Test", "-c", "user.email=test@example.invalid", "-c", "commit.gpgsign=false"];
        self.run(Command::new("git").args(person).args(arguments))
    }

    fn run(&self, command: &mut Command) -> Result<String> {
        let output = command.current_dir(&self.folder).output().with_context(|| format!("{command:?}"))?;
        if !output.status.success() {
            bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A request to build a commit on a queue. `before` is run by a shell before the output is made.
    pub fn build(&self, queue: &str, name: &str, commit: CommitSha, before: &str) -> Result<BuildBody> {
        let health = HealthCheck { http_path: "/".into(), interval_ms: 200, ..HealthCheck::default() };
        let run = RunSpec {
            command: vec!["./server".into()],
            environment: Default::default(),
            health: HealthCheck { deadline_seconds: 30, ..health },
            stop_signal: StopSignal::Term,
            stop_seconds: 5,
            ..RunSpec::default()
        };
        let script = format!("set -eu\n{before}\nmkdir -p out\ncp server version.txt out/");
        let build = BuildSpec {
            name: name.parse()?,
            repository: format!("file://{}", self.folder.display()),
            commit,
            command: vec!["sh".into(), "-c".into(), script],
            output: "out".into(),
            environment: Default::default(),
            time_limit_seconds: 300,
            labels: Default::default(),
            run,
        };
        Ok(BuildBody { queue: queue.parse()?, build })
    }
}

/// A request to build nothing that there is, for a queue without workers.
pub fn nothing(queue: &str) -> Result<BuildBody> {
    let text = r#"{"name": "nothing", "repository": "file:///nowhere", "commit":
        "0000000000000000000000000000000000000000", "command": ["true"], "output": "out", "run": {"command": ["true"]}}"#;
    Ok(BuildBody { queue: queue.parse()?, build: serde_json::from_str(text)? })
}
