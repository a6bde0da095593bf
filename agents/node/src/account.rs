//! As whom a service runs: users and groups of this machine, by name or number.

use std::fs;

use crate::{Error, shim::Account};

/// In the set of capabilities: changing groups and users.
const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;

/// The account that a run asks for; none if it is the agent's own.
pub fn of(user: Option<&str>, group: Option<&str>) -> Result<Option<Account>, Error> {
    if user.is_none() && group.is_none() {
        return Ok(None);
    }
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let own = Account { user: rustix::process::geteuid().as_raw(), group: rustix::process::getegid().as_raw() };
    let account = resolve(user, group, own, &read("/etc/passwd"), &read("/etc/group")).map_err(Error::Unhealthy)?;
    if account == own {
        return Ok(None);
    }
    if !may_change(&read("/proc/self/status")) {
        let (Account { user, group }, agent) = (account, own.user);
        return Err(Error::Unhealthy(format!(
            "the service is to run as user {user} and group {group}, and this agent, which runs as user {agent}, may not \
             change users: run it as root, or take run.user and run.group out"
        )));
    }
    Ok(Some(account))
}

fn resolve(
    user: Option<&str>,
    group: Option<&str>,
    own: Account,
    passwd: &str,
    groups: &str,
) -> Result<Account, String> {
    let mut account = own;
    if let Some(name) = user {
        let entry = entry(passwd, name);
        let unknown = || format!("the user {name} of run.user is not in /etc/passwd: make it, or give its number");
        account.user = match (&entry, name.parse()) {
            (Some(entry), _) => entry.get(2).and_then(|number| number.parse().ok()).ok_or_else(unknown)?,
            (None, Ok(number)) => number,
            (None, Err(_)) => return Err(unknown()),
        };
        let own_group = entry.and_then(|entry| entry.get(3)?.parse().ok());
        account.group = own_group.unwrap_or(account.user);
    }
    if let Some(name) = group {
        let number = entry(groups, name).and_then(|entry| entry.get(2)?.parse().ok()).or_else(|| name.parse().ok());
        account.group = number.ok_or_else(|| {
            format!("the group {name} of run.group is not in /etc/group: make it, or give its number")
        })?;
    }
    Ok(account)
}

/// The fields of a line that begins with this name, or has this number third.
fn entry<'a>(table: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let lines = || table.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let named = lines().find(|fields| fields[0] == name);
    named.or_else(|| lines().find(|fields| fields.get(2) == Some(&name)))
}

/// Whether a process of this `/proc/…/status` may take on any user and group.
fn may_change(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    [CAP_SETGID, CAP_SETUID].into_iter().all(|capability| set & (1 << capability) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:1001:1002:,,,:/srv:/bin/false\n";
    const GROUPS: &str = "root:x:0:\nadm:x:4:syslog\n";

    #[test]
    fn names_and_numbers_are_accounts() {
        let own = Account { user: 7, group: 8 };
        let table = [
            (Some("web"), None, Ok((1001, 1002))),
            (Some("1001"), None, Ok((1001, 1002))),
            (Some("1001"), Some("adm"), Ok((1001, 4))),
            (Some("2000"), None, Ok((2000, 2000))),
            (None, Some("adm"), Ok((7, 4))),
            (Some("web"), Some("3000"), Ok((1001, 3000))),
            (Some("nobody-here"), None, Err("run.user")),
            (Some("web"), Some("nobody-here"), Err("run.group")),
        ];
        for (user, group, expected) in table {
            match (resolve(user, group, own, PASSWD, GROUPS), expected) {
                (Ok(found), Ok(expected)) => assert_eq!((found.user, found.group), expected, "{user:?} {group:?}"),
                (Err(reason), Err(field)) => assert!(reason.contains(field), "{reason}"),
                other => panic!("{user:?} {group:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn who_may_change_users_has_both_capabilities() {
        for (set, expected) in [("000001ffffffffff", true), ("0000000000000000", false), ("0000000000000080", false)] {
            assert_eq!(may_change(&format!("Name:\tx\nCapEff:\t{set}\n")), expected, "{set}");
        }
        assert!(!may_change(""));
    }

    #[test]
    fn the_agents_own_account_needs_nothing() {
        let own = rustix::process::geteuid().as_raw().to_string();
        let group = rustix::process::getegid().as_raw().to_string();
        assert_eq!(of(Some(&own), Some(&group)).expect("it is this one"), None);
        assert_eq!(of(None, None).expect("nothing is asked"), None);
    }
}
