//! A region's network on one machine: namespaces behind links of the rates that are asked for.
//!
//! ```text
//!  bucket ──400── spine ──125── rack ──100── node
//!                   ├────125── rack ──100── node …
//! ```
//!
//! Both ends of a link are shaped, so each direction has the whole rate. All is gone with the [`Lab`].

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

/// What is built, in kbit/s.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) racks: usize,
    pub(crate) nodes_per_rack: usize,
    pub(crate) node_kbit: u32,
    pub(crate) uplink_kbit: u32,
    pub(crate) bucket_kbit: u32,
}

impl Layout {
    pub(crate) fn nodes(&self) -> usize {
        self.racks * self.nodes_per_rack
    }
}

pub(crate) struct Lab {
    pub(crate) layout: Layout,
    mark: String,
    names: Vec<String>,
}

/// One end of a link inside the lab.
struct End<'a> {
    space: &'a str,
    device: &'a str,
}

/// Names of all labs begin with this, and go on with the process that built them.
const MARK: &str = "lsw";
/// From outside the lab, past all shaping.
const OUTSIDE: (&str, &str) = ("10.89.0.1", "10.89.0.2");
pub(crate) const BUCKET: &str = "10.88.0.1";

impl Lab {
    pub(crate) fn build(layout: Layout) -> Result<Self> {
        remove_abandoned()?;
        let mark = format!("{MARK}{}", std::process::id());
        let mut lab = Self { layout, mark, names: Vec::new() };
        let spine = lab.space("spine")?;
        bridge(&spine)?;
        let bucket = lab.space("bucket")?;
        lab.attach(&bucket, BUCKET, &spine, "bucket", layout.bucket_kbit)?;
        for rack in 0..layout.racks {
            let name = lab.space(&format!("rack{rack}"))?;
            bridge(&name)?;
            let (up, down) = (End { space: &name, device: "uplink" }, format!("rack{rack}"));
            link(&up, &End { space: &spine, device: &down })?;
            for (space, device) in [(&name, "uplink"), (&spine, down.as_str())] {
                ip(&["-n", space, "link", "set", device, "master", "bridge", "up"])?;
                shape(&End { space, device }, layout.uplink_kbit)?;
            }
            for index in 0..layout.nodes_per_rack {
                let node = lab.space(&format!("n{}", rack * layout.nodes_per_rack + index))?;
                let address = lab.address(rack * layout.nodes_per_rack + index);
                lab.attach(&node, &address, &name, &format!("n{index}"), layout.node_kbit)?;
            }
        }
        let outside = format!("{}-out", lab.mark);
        ip(&["link", "add", &outside, "type", "veth", "peer", "name", "outside", "netns", &bucket])?;
        ip(&["address", "add", &format!("{}/30", OUTSIDE.0), "dev", &outside])?;
        ip(&["link", "set", &outside, "up"])?;
        ip(&["-n", &bucket, "address", "add", &format!("{}/30", OUTSIDE.1), "dev", "outside"])?;
        ip(&["-n", &bucket, "link", "set", "outside", "up"])?;
        Ok(lab)
    }

    fn space(&mut self, name: &str) -> Result<String> {
        let name = format!("{}-{name}", self.mark);
        ip(&["netns", "add", &name])?;
        self.names.push(name.clone());
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        // Paced flows would keep the machine's timers busier than its links.
        let set = |control: &str| {
            let setting = format!("net.ipv4.tcp_congestion_control={control}");
            ip(&["netns", "exec", &name, "sysctl", "--quiet", "--write", &setting])
        };
        // Where namespaces may not have cubic, what every kernel has.
        set("cubic").or_else(|_| set("reno"))?;
        Ok(name)
    }

    /// A machine, at a switch.
    fn attach(&self, space: &str, address: &str, switch: &str, port: &str, kbit: u32) -> Result<()> {
        let (wire, port) = (End { space, device: "wire" }, End { space: switch, device: port });
        link(&wire, &port)?;
        ip(&["-n", switch, "link", "set", port.device, "master", "bridge", "up"])?;
        ip(&["-n", space, "address", "add", &format!("{address}/16"), "dev", "wire"])?;
        ip(&["-n", space, "link", "set", "wire", "up"])?;
        shape(&wire, kbit)?;
        shape(&port, kbit)
    }

    pub(crate) fn rack_of(&self, node: usize) -> usize {
        node / self.layout.nodes_per_rack
    }

    pub(crate) fn address(&self, node: usize) -> String {
        format!("10.88.{}.{}", self.rack_of(node) + 1, node % self.layout.nodes_per_rack + 1)
    }

    /// Where the bucket's machine is reached by who is not in the lab.
    pub(crate) fn bucket_from_outside(&self) -> &'static str {
        OUTSIDE.1
    }

    /// A command on a node; without one, on the bucket's machine.
    pub(crate) fn command(&self, node: Option<usize>, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let space = node.map_or_else(|| "bucket".to_owned(), |node| format!("n{node}"));
        // Nothing outlives the process that measures, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "ip", "netns", "exec", &format!("{}-{space}", self.mark)]).arg(program);
        command.stdin(Stdio::null());
        command
    }

    /// Bytes that came into each rack over its uplink, and that left the bucket, since the lab was built.
    pub(crate) fn counted(&self) -> Result<Counted> {
        let of = |space: String, device: &str, direction: &str| -> Result<u64> {
            let text = ip(&["-n", &space, "-s", "-j", "link", "show", "dev", device])?;
            let links: serde_json::Value = serde_json::from_str(&text)?;
            links[0]["stats64"][direction]["bytes"].as_u64().with_context(|| format!("counters of {device}: {text}"))
        };
        let racks = (0..self.layout.racks).map(|rack| of(format!("{}-rack{rack}", self.mark), "uplink", "rx"));
        let racks = racks.collect::<Result<_>>()?;
        Ok(Counted { racks, bucket: of(format!("{}-bucket", self.mark), "wire", "tx")? })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Links go with their namespaces. One that is not there any more is no loss.
        for name in &self.names {
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

/// Labs of processes that are gone: their addresses are those of every lab.
fn remove_abandoned() -> Result<()> {
    for name in ip(&["netns", "list"])?.lines().filter_map(|line| line.split_whitespace().next()) {
        if is_abandoned(name, MARK) {
            ip(&["netns", "delete", name])?;
        }
    }
    Ok(())
}

/// Whether a name goes on with a process that is gone.
pub(crate) fn is_abandoned(name: &str, mark: &str) -> bool {
    let process = name.strip_prefix(mark).and_then(|rest| rest.split_once('-')?.0.parse::<u32>().ok());
    process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists())
}

#[derive(Debug, Clone)]
pub(crate) struct Counted {
    pub(crate) racks: Vec<u64>,
    pub(crate) bucket: u64,
}

fn link(one: &End<'_>, other: &End<'_>) -> Result<()> {
    let (space, device) = (one.space, one.device);
    ip(&["link", "add", device, "netns", space, "type", "veth", "peer", "name", other.device, "netns", other.space])
        .map(drop)
}

fn bridge(space: &str) -> Result<()> {
    ip(&["-n", space, "link", "add", "bridge", "type", "bridge"])?;
    ip(&["-n", space, "link", "set", "bridge", "up"]).map(drop)
}

/// What leaves by this end. Segments are cut before they are queued: a burst of 64 KiB would be one packet otherwise.
fn shape(End { space, device }: &End<'_>, kbit: u32) -> Result<()> {
    ip(&["-n", space, "link", "set", device, "gso_max_size", "16384"])?;
    let rate = format!("{kbit}kbit");
    // 64 ms of the link. For a slow link that is long, but as many packets as a switch has room for: with a few dozen, a tenth of what is
    // sent is dropped and sent again, and the machine is busy with that.
    let queued = (u64::from(kbit) * 8).to_string();
    tc(&["-n", space, "qdisc", "add", "dev", device, "root", "handle", "1:", "htb", "default", "1"])?;
    let class = ["-n", space, "class", "add", "dev", device, "parent", "1:", "classid", "1:1", "htb", "rate", &rate];
    tc(&[&class[..], &["burst", "64k", "cburst", "64k"]].concat())?;
    tc(&["-n", space, "qdisc", "add", "dev", device, "parent", "1:1", "bfifo", "limit", &queued])
}

fn ip(arguments: &[&str]) -> Result<String> {
    run("ip", arguments)
}

fn tc(arguments: &[&str]) -> Result<()> {
    run("tc", arguments).map(drop)
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {said}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A process of the lab, which ends with this.
pub(crate) struct Guarded(pub(crate) Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid.filter(|_| matches!(self.0.try_wait(), Ok(None))) {
            // It may end just now.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let mut waited = Duration::ZERO;
        while matches!(self.0.try_wait(), Ok(None)) {
            if waited > Duration::from_secs(10) {
                let _ = self.0.kill();
                let _ = self.0.wait();
                return;
            }
            std::thread::sleep(POLL);
            waited += POLL;
        }
    }
}

const POLL: Duration = Duration::from_millis(20);
