//! What holds a service to its limits: a control group where there is one, else the limits that processes carry themselves, which
//! hold each process alone; and in words, which it was.

use longshore_schemas::events::RunLimits;
use serde::{Deserialize, Serialize};

/// What a process carries itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resource {
    AddressSpace,
    OpenFiles,
    Processes,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Files of the control group, and what is written to each.
    pub group: Vec<(&'static str, String)>,
    pub carried: Vec<(Resource, u64)>,
    /// For people.
    pub words: Vec<String>,
}

/// How a service is held, with these controllers for its group; none if there can be no group.
pub fn held(limits: &RunLimits, controllers: &[&str]) -> Held {
    let has = |controller: &str| controllers.contains(&controller);
    let mut held = Held::default();
    if let Some(mib) = limits.memory_mib {
        let bytes = u64::from(mib) << 20;
        if has("memory") {
            held.group.push(("memory.max", bytes.to_string()));
            held.words.push(format!("memory {mib} MiB by cgroup"));
        } else {
            held.carried.push((Resource::AddressSpace, bytes));
            held.words.push(format!("memory {mib} MiB of address space of each process by rlimit"));
        }
    }
    if let Some(percent) = limits.cpu_percent {
        if has("cpu") {
            held.group.push(("cpu.max", format!("{} 100000", u64::from(percent) * 1_000)));
            held.words.push(format!("cpu {percent} % by cgroup"));
        } else {
            held.words.push(format!("cpu {percent} % is not held: there is no cgroup for it"));
        }
    }
    if let Some(processes) = limits.processes {
        if has("pids") {
            held.group.push(("pids.max", processes.to_string()));
            held.words.push(format!("{processes} processes by cgroup"));
        } else {
            held.carried.push((Resource::Processes, processes.into()));
            held.words.push(format!("{processes} processes of its user by rlimit"));
        }
    }
    if let Some(files) = limits.open_files {
        held.carried.push((Resource::OpenFiles, files.into()));
        held.words.push(format!("{files} open files of each process by rlimit"));
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_used_where_it_can_hold() {
        let all = RunLimits { memory_mib: Some(2), cpu_percent: Some(150), open_files: Some(64), processes: Some(9) };
        let with = held(&all, &["cpu", "memory", "pids", "io"]);
        let group = [("memory.max", "2097152"), ("cpu.max", "150000 100000"), ("pids.max", "9")];
        assert_eq!(with.group, group.map(|(file, value)| (file, value.to_owned())));
        assert_eq!(with.carried, [(Resource::OpenFiles, 64)]);
        assert!(with.words.iter().filter(|words| words.ends_with("by cgroup")).count() == 3, "{:?}", with.words);

        let without = held(&all, &[]);
        assert_eq!(without.group, []);
        let carried = [(Resource::AddressSpace, 2 << 20), (Resource::Processes, 9), (Resource::OpenFiles, 64)];
        assert_eq!(without.carried, carried);
        assert!(without.words.iter().any(|words| words.contains("cpu 150 % is not held")), "{:?}", without.words);

        let some = held(&all, &["memory"]);
        assert_eq!(some.group.len(), 1);
        assert_eq!(some.carried, [(Resource::Processes, 9), (Resource::OpenFiles, 64)]);
        assert_eq!(held(&RunLimits::default(), &["memory"]), Held::default());
    }
}
