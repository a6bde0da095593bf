//! A schema registry of somebody else's, for tests: Apicurio, in memory.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;

const READY: Duration = Duration::from_secs(90);
const ANSWER: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);
/// Where it speaks as Confluent's registry does.
const PATH: &str = "/apis/ccompat/v7";

/// A running Apicurio with nothing in it. Dropping it ends it. `infra/setup.sh apicurio` fetches it from Maven Central.
#[derive(Debug)]
pub struct Apicurio {
    process: Child,
    port: u16,
    _folder: TempDir,
}

impl Apicurio {
    /// Returns once it answers.
    pub fn start() -> anyhow::Result<Self> {
        let cache = match std::env::var_os("LONGSHORE_CACHE") {
            Some(cache) => PathBuf::from(cache),
            None => PathBuf::from(std::env::var_os("HOME").context("HOME is set")?).join(".cache/longshore"),
        };
        let jar = cache.join("apicurio/apicurio-registry-app-3.0.9-runner.jar");
        ensure!(jar.is_file(), "there is no {}: infra/setup.sh apicurio fetches it", jar.display());
        // Free a moment ago: whoever takes it in between makes the test fail, not pass.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let folder = tempfile::tempdir()?;
        let process = Command::new("java")
            .args(["-Xmx256m", "-XX:TieredStopAtLevel=1", "-jar"])
            .arg(&jar)
            .current_dir(folder.path())
            .env("APICURIO_STORAGE_KIND", "sql")
            .env("APICURIO_STORAGE_SQL_KIND", "h2")
            .env("QUARKUS_HTTP_HOST", "127.0.0.1")
            .env("QUARKUS_HTTP_PORT", port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("java cannot be started")?;
        let mut apicurio = Self { process, port, _folder: folder };
        let begun = Instant::now();
        while !apicurio.answers() {
            if let Some(status) = apicurio.process.try_wait()? {
                bail!("Apicurio ended with {status}");
            }
            ensure!(begun.elapsed() < READY, "Apicurio is not ready after {READY:?}");
            std::thread::sleep(POLL);
        }
        Ok(apicurio)
    }

    /// What clients of Confluent's registry are given.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}{PATH}", self.port)
    }

    fn answers(&self) -> bool {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
            stream.set_read_timeout(Some(ANSWER))?;
            write!(stream, "GET {PATH}/subjects HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut status = [0; "HTTP/1.1 200".len()];
            stream.read_exact(&mut status)?;
            Ok(String::from_utf8_lossy(&status).into_owned())
        };
        ask().is_ok_and(|status| status.ends_with(" 200"))
    }
}

impl Drop for Apicurio {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
