//! Which repositories a build may name. Whether a repository can be read, the worker finds out.

/// Longest repository URL, in bytes.
const REPOSITORY_BYTES_MAX: usize = 2_048;

/// Why the repository is not taken; the text names the field and says what to write.
pub(crate) fn check(repository: &str, allow_file: bool) -> Result<(), String> {
    let refused = |reason: &str| Err(format!("build.repository: {reason}"));
    if repository.is_empty() || repository.len() > REPOSITORY_BYTES_MAX {
        return refused("give a git URL of 1 to 2048 bytes, such as https://host/path.git");
    }
    if repository.starts_with('-') || repository.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return refused("a git URL has no spaces or control characters and does not begin with '-'");
    }
    if let Some(rest) = repository.strip_prefix("https://").or_else(|| repository.strip_prefix("ssh://")) {
        return check_authority(rest).or_else(refused);
    }
    if repository.starts_with("file://") || repository.starts_with('/') {
        return if allow_file {
            Ok(())
        } else {
            refused("this installation takes no local files: use an https or ssh URL")
        };
    }
    if is_scp_like(repository) {
        return Ok(());
    }
    refused("use https://host/path, ssh://user@host/path or git@host:path")
}

fn check_authority(rest: &str) -> Result<(), &'static str> {
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() || host.starts_with('-') || path.is_empty() {
        return Err("a git URL names a host and a path, such as https://host/path.git");
    }
    if user.contains(':') {
        return Err(
            "a password does not belong in a URL, where everybody can read it: use a credential helper on the workers",
        );
    }
    Ok(())
}

/// `user@host:path`, as git has it.
fn is_scp_like(repository: &str) -> bool {
    let Some((user, (host, path))) =
        repository.split_once('@').and_then(|(user, rest)| Some((user, rest.split_once(':')?)))
    else {
        return false;
    };
    // `ext::` and the like would run a command of the URL's choice.
    let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    let named = |text: &str| !text.is_empty() && !text.starts_with('-') && plain(text);
    named(user) && named(host) && !path.is_empty() && !path.starts_with([':', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_urls_that_git_reads_safely_are_taken() {
        let table = [
            ("https://example.com/a.git", true, true),
            ("ssh://git@example.com:2222/a.git", true, true),
            ("git@example.com:a/b.git", true, true),
            ("file:///srv/a.git", false, true),
            ("/srv/a.git", false, true),
            ("", false, false),
            ("http://example.com/a.git", false, false),
            ("git://example.com/a.git", false, false),
            ("https://", false, false),
            ("https://example.com", false, false),
            ("https://user:secret@example.com/a", false, false),
            ("ssh://-oProxyCommand=x/a", false, false),
            ("ext::sh -c whoami", false, false),
            ("x@ext::sh", false, false),
            ("git@-oProxyCommand=x:a", false, false),
            ("--upload-pack=x", false, false),
            ("../up", false, false),
            ("https://example.com/a\nb", false, false),
        ];
        for (repository, remote, local) in table {
            assert_eq!(check(repository, false).is_ok(), remote, "{repository:?}");
            assert_eq!(check(repository, true).is_ok(), local, "{repository:?} where files are allowed");
        }
        assert!(check("x", false).expect_err("no URL").starts_with("build.repository"));
        assert!(check(&format!("https://h/{}", "a".repeat(3000)), true).is_err());
    }
}
