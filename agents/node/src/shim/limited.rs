//! Holds a service to its limits.
//!
//! ```text
//!  <the agent's cgroup, delegated by systemd>
//!   ├── agent          the agent and its shims
//!   └── service-web    one for each service that has limits
//! ```
//!
//! A process is put into its group, and given what it carries itself, before it becomes the service's program: by a step in between,
//! `longshore-node limited`, which then executes the program in its own place. So nothing of a service ever runs without them.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
};

use longshore_node_policy::limits::{Held, Resource, held};
use longshore_schemas::events::{RunLimits, StringMap};
use rustix::process::{Resource as Carried, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use super::Account;
use crate::Error;

const MOUNT: &str = "/sys/fs/cgroup";
/// Where the agent and its shims are: a group with groups below it may have no process of its own.
const AGENT: &str = "agent";

/// The variable that holds the service's environment, as JSON, until the step in between becomes its program.
pub(super) const ENVIRONMENT: &str = "LONGSHORE_LIMITED_ENVIRONMENT";

/// What the step in between does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Limited {
    group: Option<PathBuf>,
    carried: Vec<(Resource, u64)>,
    account: Option<Account>,
}

/// Makes what holds a service; and how it is held, in words. A group that cannot be made is none.
pub(super) fn hold(service: &str, limits: &RunLimits, account: Option<Account>) -> (Limited, Vec<String>) {
    let delegated = own_group(Path::new(MOUNT)).and_then(|own| delegated(&own));
    hold_below(delegated.as_deref(), service, limits, account)
}

fn hold_below(
    delegated: Option<&Path>,
    service: &str,
    limits: &RunLimits,
    account: Option<Account>,
) -> (Limited, Vec<String>) {
    let made = delegated.and_then(|delegated| {
        let enabled = fs::read_to_string(delegated.join("cgroup.subtree_control")).ok()?;
        let held = held(limits, &enabled.split_whitespace().collect::<Vec<_>>());
        let group = delegated.join(format!("service-{service}"));
        make(&group, &held).ok().map(|()| (group, held))
    });
    let (group, Held { carried, words, .. }) = match made {
        Some((group, held)) => (Some(group).filter(|_| !held.group.is_empty()), held),
        None => (None, held(limits, &[])),
    };
    (Limited { group, carried, account }, words)
}

fn make(group: &Path, held: &Held) -> std::io::Result<()> {
    if !held.group.is_empty() && !group.is_dir() {
        fs::create_dir(group)?;
    }
    held.group.iter().try_for_each(|(file, value)| fs::write(group.join(file), value))
}

impl Limited {
    /// The group is empty by now.
    pub(super) fn let_go(&self) {
        if let Some(group) = &self.group {
            // One that stays does no harm.
            let _ = fs::remove_dir(group);
        }
    }
}

/// `longshore-node limited PLAN PROGRAM …`: becomes the program. Returns only if that fails.
pub fn main(plan: &str, command: &[String]) -> Result<(), Error> {
    let plan: Limited = serde_json::from_str(plan).map_err(|error| Error::Refused(error.to_string()))?;
    if let Some(group) = &plan.group {
        let file = group.join("cgroup.procs");
        fs::write(&file, std::process::id().to_string()).map_err(Error::io(&file))?;
    }
    for (resource, most) in &plan.carried {
        carry(*resource, *most)?;
    }
    let (program, arguments) = command.split_first().ok_or_else(|| Error::Refused("there is no program".into()))?;
    let environment = std::env::var(ENVIRONMENT).map_err(|_| Error::Refused(format!("{ENVIRONMENT} is not set")))?;
    let environment: StringMap =
        serde_json::from_str(&environment).map_err(|error| Error::Refused(error.to_string()))?;
    let mut command = std::process::Command::new(program);
    command.args(arguments).env_remove(ENVIRONMENT).envs(environment);
    if let Some(Account { user, group }) = plan.account {
        command.uid(user).gid(group);
    }
    Err(Error::Start { program: program.clone(), source: command.exec() })
}

fn carry(resource: Resource, most: u64) -> Result<(), Error> {
    let carried = match resource {
        Resource::AddressSpace => Carried::As,
        Resource::OpenFiles => Carried::Nofile,
        Resource::Processes => Carried::Nproc,
    };
    let limit = Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(carried, limit).map_err(|error| {
        let now = getrlimit(carried).maximum.map_or("none".to_owned(), |most| most.to_string());
        Error::Refused(format!("the limit {resource:?} cannot be {most} (the agent's own is {now}): {error}"))
    })
}

/// Makes room for the groups of services below the agent's own, where it was delegated to it; says whether it could. A group that
/// others live in, a login session's for one, is left alone.
pub fn settle() -> bool {
    own_group(Path::new(MOUNT)).is_some_and(|own| delegated(&own).is_some() || settle_in(&own).is_some())
}

fn settle_in(own: &Path) -> Option<()> {
    let alone = fs::read_to_string(own.join("cgroup.procs")).ok()?.trim() == std::process::id().to_string();
    if !alone || own == Path::new(MOUNT) {
        return None;
    }
    let agent = own.join(AGENT);
    fs::create_dir_all(&agent).ok()?;
    fs::write(agent.join("cgroup.procs"), std::process::id().to_string()).ok()?;
    let offered = fs::read_to_string(own.join("cgroup.controllers")).ok()?;
    for controller in
        ["cpu", "memory", "pids"].into_iter().filter(|wanted| offered.split(' ').any(|c| c.trim() == *wanted))
    {
        // Without one of them the others hold all the same.
        let _ = fs::write(own.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Some(())
}

/// Of cgroup v2; none where there is only v1.
fn own_group(mount: &Path) -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
    Some(mount.join(path)).filter(|own| own.join("cgroup.procs").exists())
}

/// The group above, if this is the agent's place in it.
fn delegated(own: &Path) -> Option<PathBuf> {
    (own.file_name()? == AGENT).then(|| own.parent().map(Path::to_owned)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_made_where_it_was_delegated() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = folder.path().join("longshore-node.service");
        fs::create_dir(&own).expect("made");
        let limits = RunLimits { memory_mib: Some(64), cpu_percent: Some(50), ..RunLimits::default() };
        fs::write(own.join("cgroup.subtree_control"), "memory pids\n").expect("written");
        let (limited, words) = hold_below(Some(&own), "web", &limits, None);
        assert_eq!(limited.group, Some(own.join("service-web")));
        assert_eq!(fs::read_to_string(own.join("service-web/memory.max")).expect("written"), "67108864");
        assert_eq!(words.len(), 2);
        assert!(words[0].contains("by cgroup") && words[1].contains("not held"), "{words:?}");

        // Nobody delegated anything.
        let (limited, words) = hold_below(None, "web", &limits, None);
        assert_eq!((limited.group, limited.carried), (None, vec![(Resource::AddressSpace, 64 << 20)]));
        assert!(words[0].contains("by rlimit"), "{words:?}");
    }

    #[test]
    fn only_a_group_of_its_own_is_settled_in() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = folder.path().join("longshore-node.service");
        fs::create_dir(&own).expect("made");
        let procs = |text: String| fs::write(own.join("cgroup.procs"), text).expect("written");
        procs(format!("1\n{}\n", std::process::id()));
        assert_eq!(settle_in(&own), None, "others live there");
        procs(format!("{}\n", std::process::id()));
        fs::write(own.join("cgroup.controllers"), "cpuset cpu memory\n").expect("written");
        assert_eq!(settle_in(&own), Some(()));
        assert_eq!(
            fs::read_to_string(own.join("agent/cgroup.procs")).expect("written"),
            std::process::id().to_string()
        );
        assert_eq!(delegated(&own.join("agent")), Some(own.clone()));
        assert_eq!(delegated(&own), None);
    }
}
