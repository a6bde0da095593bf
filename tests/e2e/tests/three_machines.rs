//! `infra/docs/three-machines.md`, followed word by word on three network namespaces: every command of it, in its order.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use longshore_e2e::process::binary_path;

const GUIDE: &str = include_str!("../../../infra/docs/three-machines.md");
const MACHINES: [&str; 3] = ["one", "two", "three"];
const STAYS: &str = "# leave it running";
const UNTIL: &str = "# until it says: ";
const BOUND: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);

/// A command of the guide.
#[derive(Debug)]
struct Step {
    machine: &'static str,
    command: String,
    /// It is for the time after the machine's agent was ended.
    ends_agent: bool,
}

/// The indented lines, each with the machine that its heading names.
fn steps() -> Vec<Step> {
    let (mut steps, mut place, mut command) = (Vec::new(), None, String::new());
    for line in GUIDE.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let named = |name: &&&str| heading.strip_prefix("On ").is_some_and(|rest| rest.starts_with(**name));
            let ends_agent = heading.contains("after its agent was ended");
            place = MACHINES.iter().find(named).map(|machine| (*machine, ends_agent));
        }
        let (Some((machine, ends_agent)), Some(part)) = (place, line.strip_prefix("    ")) else { continue };
        match part.strip_suffix('\\') {
            Some(begun) => command.push_str(begun),
            None => {
                command.push_str(part.trim_start());
                steps.push(Step { machine, command: std::mem::take(&mut command), ends_agent });
            }
        }
    }
    steps
}

/// A network that the machines alone are on; it is gone with this.
struct Network {
    names: Vec<String>,
}

impl Network {
    fn create(mark: &str) -> Result<Self> {
        let mut network = Self { names: Vec::new() };
        let switch = network.namespace(&format!("{mark}-switch"))?;
        ip(&["-n", &switch, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "bridge", "up"])?;
        for (number, machine) in MACHINES.iter().enumerate() {
            let name = network.namespace(&format!("{mark}-{machine}"))?;
            let address = format!("10.77.0.{}/24", number + 1);
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            ip(&["link", "add", "wire", "netns", &name, "type", "veth", "peer", "name", machine, "netns", &switch])?;
            ip(&["-n", &switch, "link", "set", machine, "master", "bridge", "up"])?;
            ip(&["-n", &name, "address", "add", &address, "dev", "wire"])?;
            ip(&["-n", &name, "link", "set", "wire", "up"])?;
        }
        Ok(network)
    }

    fn namespace(&mut self, name: &str) -> Result<String> {
        ip(&["netns", "add", name])?;
        self.names.push(name.to_owned());
        Ok(name.to_owned())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            // The next run makes others.
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("ip: install iproute2")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "ip {}: {said}(this test makes network namespaces: run it as root)",
        arguments.join(" ")
    );
    Ok(())
}

/// The three machines: a folder and a network namespace each.
struct Machines {
    mark: String,
    folder: PathBuf,
    path: String,
    stays: Vec<(&'static str, String, Child)>,
    _network: Network,
}

impl Machines {
    fn create(folder: &Path) -> Result<Self> {
        let mark = format!("ls{}", std::process::id());
        let network = Network::create(&mark)?;
        for machine in MACHINES {
            fs::create_dir_all(folder.join(machine))?;
        }
        let programs = binary_path("longshore")?.parent().context("it is in a folder")?.to_owned();
        binary_path("longshore-node")?;
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        Ok(Self { mark, folder: folder.to_owned(), path, stays: Vec::new(), _network: network })
    }

    fn command(&self, machine: &str, words: &[&str]) -> Command {
        let mut shell = Command::new("ip");
        shell.args(["netns", "exec", &format!("{}-{machine}", self.mark)]).args(words);
        shell.current_dir(self.folder.join(machine)).env("PATH", &self.path).stdin(Stdio::null());
        shell
    }

    fn log(&self, number: usize) -> PathBuf {
        self.folder.join(format!("{number}.log"))
    }

    /// Starts what stays, and waits until it is ready, if it says when.
    fn start(&mut self, machine: &'static str, command: &str) -> Result<()> {
        let path = self.log(self.stays.len());
        let log = File::create(&path)?;
        let mut shell = self.command(machine, &["sh", "-c", &format!("exec {command}")]);
        let child = shell.stdout(log.try_clone()?).stderr(log).spawn()?;
        self.stays.push((machine, command.to_owned(), child));
        if command.starts_with("longshore up ") {
            until("`longshore up` to be ready", || Ok(fs::read_to_string(&path)?.contains("longshore is ready")))?;
        }
        Ok(())
    }

    fn run(&self, machine: &str, command: &str) -> Result<String> {
        let seconds = BOUND.as_secs().to_string();
        let output = self.command(machine, &["timeout", "--kill-after=5", &seconds, "sh", "-c", command]).output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "on {machine}: {command}\n{out}{err}");
        Ok(out.into_owned())
    }

    /// As scp does it.
    fn copy(&self, machine: &str, arguments: &str) -> Result<()> {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        let (to, files) = words.split_last().context("scp without arguments")?;
        let (other, folder) = to.split_once(':').context("scp to no machine")?;
        ensure!(folder == "/srv/longshore" && MACHINES.contains(&other), "scp to {to}");
        for file in files {
            let from = self.folder.join(machine).join(file);
            let name = from.file_name().with_context(|| format!("{file} names no file"))?;
            fs::copy(&from, self.folder.join(other).join(name)).with_context(|| (*file).to_owned())?;
        }
        Ok(())
    }

    /// As whoever sits at the terminal does with Ctrl-C.
    fn end(&mut self, machine: &str, program: &str) -> Result<()> {
        for (_, _, child) in
            self.stays.iter_mut().filter(|(at, command, _)| *at == machine && command.starts_with(program))
        {
            terminate(child)?;
        }
        Ok(())
    }

    fn logs(&self) -> String {
        let end = |number: usize| {
            let text = fs::read_to_string(self.log(number)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(15)..].join("\n")
        };
        let of = |(number, (machine, command, _)): (usize, &(_, String, _))| {
            format!("on {machine}: {command}\n{}\n", end(number))
        };
        self.stays.iter().enumerate().map(of).collect()
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for machine in ["two", "three"] {
            // Services outlive their agent, as they should; what is stopped already stays so.
            let _ = self.end(machine, "longshore-node");
            let _ = self.run(machine, "longshore-node stop-services --data node");
        }
        for (_, _, child) in self.stays.iter_mut().rev() {
            let _ = terminate(child);
        }
    }
}

fn terminate(child: &mut Child) -> Result<()> {
    if child.try_wait()?.is_none() {
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id())?).context("a pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        if let Err(error) = until("a process to end", || Ok(child.try_wait()?.is_some())) {
            child.kill()?;
            child.wait()?;
            return Err(error);
        }
    }
    Ok(())
}

fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !is_so()? {
        ensure!(begun.elapsed() < BOUND, "waited in vain for {what}");
        std::thread::sleep(POLL);
    }
    Ok(())
}

#[test]
fn the_guide_works_word_by_word() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut machines = Machines::create(folder.path())?;
    let steps = steps();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for step in &steps {
        *counts.entry(step.machine).or_default() += 1;
        follow(&mut machines, step).with_context(|| format!("{step:?}\n{}", machines.logs()))?;
    }
    // The page was read, and no heading was missed.
    assert_eq!(counts, BTreeMap::from([("one", 30), ("two", 1), ("three", 2)]), "{steps:#?}");
    Ok(())
}

fn follow(machines: &mut Machines, step: &Step) -> Result<()> {
    let Step { machine, command, ends_agent } = step;
    if *ends_agent {
        machines.end(machine, "longshore-node run")?;
    }
    if let Some(command) = command.strip_suffix(STAYS) {
        return machines.start(machine, command.trim());
    }
    if let Some((command, words)) = command.split_once(UNTIL) {
        let command = command.trim();
        let says = || Ok(machines.run(machine, command).is_ok_and(|said| said.contains(words)));
        return until(&format!("{command} to say {words:?}"), says);
    }
    if let Some(arguments) = command.strip_prefix("scp ") {
        return machines.copy(machine, arguments);
    }
    if command.is_empty() {
        bail!("a line without a command");
    }
    machines.run(machine, command).map(drop)
}
