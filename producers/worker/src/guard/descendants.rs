//! Who descends from a process, by the parents that /proc names.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
};

use rustix::process::Pid;

/// All descendants, at the moment of asking; those that ended and wait for their parent among them.
pub(super) fn of(ancestor: Pid) -> Vec<Pid> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for (pid, parent) in processes() {
        children.entry(parent).or_default().push(pid);
    }
    let mut found = Vec::new();
    let mut open = vec![ancestor.as_raw_pid()];
    while let Some(pid) = open.pop() {
        let next = children.remove(&pid).unwrap_or_default();
        found.extend(next.iter().copied().filter_map(Pid::from_raw));
        open.extend(next);
    }
    found
}

/// The children of a process of one thread, which is much faster to tell. Empty where the kernel does not say.
pub(super) fn children(process: Pid) -> Vec<Pid> {
    let pid = process.as_raw_pid();
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    listed.split_ascii_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

pub(super) fn all() -> impl Iterator<Item = i32> {
    processes().map(|(pid, _)| pid)
}

/// A process, its parent, and so on up to the first.
pub(super) fn with_ancestors(process: Pid) -> BTreeSet<i32> {
    let parents: HashMap<i32, i32> = processes().collect();
    let mut line = BTreeSet::new();
    let mut next = Some(process.as_raw_pid());
    while let Some(pid) = next.filter(|pid| line.insert(*pid)) {
        next = parents.get(&pid).copied();
    }
    line
}

/// Every process and its parent. One that ends while we look is left out.
fn processes() -> impl Iterator<Item = (i32, i32)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read(entry.path().join("stat")).ok()?;
        Some((pid, parent(&stat)?))
    })
}

/// The fourth field. The second is the program's name in parentheses, which may itself hold spaces and parentheses.
fn parent(stat: &[u8]) -> Option<i32> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_read_whatever_the_program_is_called() {
        let table: [(&[u8], Option<i32>); 5] = [
            (b"12 (sh) S 7 12 12 0", Some(7)),
            (b"12 (a) b (c)) R 9 1", Some(9)),
            (b"12 (\xff) S 3 1", Some(3)),
            (b"12 sh S 7", None),
            (b"12 (sh)", None),
        ];
        for (stat, expected) in table {
            assert_eq!(parent(stat), expected, "{}", String::from_utf8_lossy(stat));
        }
    }

    #[test]
    fn a_child_is_a_descendant() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let pid = i32::try_from(child.id()).expect("a process id");
        let found = of(rustix::process::getpid());
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        assert!(found.iter().any(|found| found.as_raw_pid() == pid));
    }
}
