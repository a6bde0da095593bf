//! A git repository of the demo's service, made commit by commit.

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

const MAIN: &str = include_str!("../../../infra/demo/greeter/src/main.rs");
const BUILD: &str = include_str!("../../../infra/demo/greeter/build.sh");
/// Bytes of one asset.
pub const ASSET_BYTES: u64 = 1024 * 1024;

pub struct Repository {
    pub folder: PathBuf,
}

impl Repository {
    pub fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder.join("src"))?;
        fs::write(folder.join("src/main.rs"), MAIN)?;
        fs::write(folder.join("build.sh"), BUILD)?;
        let repository = Self { folder: folder.to_owned() };
        repository.git(&["init", "--quiet", "--initial-branch=main"])?;
        Ok(repository)
    }

    /// Commits a version with `assets` assets, of which some are another seed's.
    pub fn commit(&self, version: &str, assets: u32, changed: &[(u32, u32)]) -> Result<CommitSha> {
        fs::write(self.folder.join("version.txt"), format!("{version}\n"))?;
        let mut lines = format!("{assets} {ASSET_BYTES} 1\n");
        for (index, seed) in changed {
            lines += &format!("{index} {seed}\n");
        }
        fs::write(self.folder.join("assets.txt"), lines)?;
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--message", version])?;
        self.git(&["rev-parse", "HEAD"])?.trim().parse().context("git's commit id")
    }

    fn git(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new("git")
            .args(["-c", "user.name=Demo", "-c", "user.email=demo@example.invalid", "-c", "commit.gpgsign=false"])
            .args(arguments)
            .current_dir(&self.folder)
            .output()
            .context("git cannot be started")?;
        if !output.status.success() {
            bail!("git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A request to build a commit of it on the default queue.
    pub fn build(&self, name: &str, commit: CommitSha) -> Result<BuildBody> {
        let health = HealthCheck { http_path: "/health".into(), interval_ms: 200, ..HealthCheck::default() };
        let run = RunSpec {
            command: vec!["bin/greeter".into()],
            environment: Default::default(),
            health: HealthCheck { deadline_seconds: 10, ..health },
            stop_signal: StopSignal::Term,
            stop_seconds: 5,
            ..RunSpec::default()
        };
        let build = BuildSpec {
            name: name.parse()?,
            repository: format!("file://{}", self.folder.display()),
            commit,
            command: vec!["sh".into(), "build.sh".into()],
            output: "out".into(),
            environment: Default::default(),
            time_limit_seconds: 300,
            labels: Default::default(),
            run,
        };
        Ok(BuildBody { queue: "default".parse()?, build })
    }
}
