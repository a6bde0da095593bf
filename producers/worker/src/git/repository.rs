//! A repository's URL: which ones are taken, and how it is shown without its password.

/// A URL that git may be given.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Repository {
    url: String,
    shown: String,
}

impl Repository {
    pub(super) fn parse(url: &str, allow_file: bool) -> Result<Self, String> {
        const RULE: &str = "use https://host/path, ssh://host/path or user@host:path";
        let plain = url.bytes().all(|b| b.is_ascii_graphic() || b >= 0x80 || (allow_file && b == b' '));
        let is_file = url.starts_with("file:///") || url.starts_with('/');
        let is_url = ["https://", "ssh://"].iter().any(|scheme| {
            url.strip_prefix(scheme)
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '['))
        });
        if is_file && !allow_file {
            return Err(format!("folders are not allowed as repositories here; {RULE}"));
        }
        if url.is_empty() || !plain || !(is_file || is_url || is_scp_like(url)) {
            return Err(format!("it is no address that is allowed; {RULE}"));
        }
        Ok(Self { url: url.to_owned(), shown: without_password(url) })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Fit for logs and messages.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Git repeats the URL in its messages.
    pub(super) fn redact(&self, text: &str) -> String {
        let text = text.replace(&self.url, &self.shown);
        match credentials(&self.url) {
            Some(credentials) => text.replace(credentials, "***"),
            None => text,
        }
    }
}

/// `user@host:path`, with neither taken for an option.
fn is_scp_like(url: &str) -> bool {
    let Some((user, rest)) = url.split_once('@') else { return false };
    let Some((host, path)) = rest.split_once(':') else { return false };
    let word = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    };
    word(user) && word(host) && !path.is_empty() && !path.starts_with('-')
}

fn credentials(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://")?;
    let authority = &rest[..rest.find('/').unwrap_or(rest.len())];
    Some(authority.rsplit_once('@')?.0).filter(|text| !text.is_empty())
}

fn without_password(url: &str) -> String {
    match credentials(url) {
        Some(credentials) => url.replacen(credentials, "***", 1),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_allowed_addresses_are_taken() {
        // Address, taken without files, taken with files.
        let table = [
            ("https://example.org/a.git", true, true),
            ("ssh://git@example.org/a.git", true, true),
            ("git@example.org:team/a.git", true, true),
            ("file:///srv/a.git", false, true),
            ("/srv/a b.git", false, true),
            ("http://example.org/a.git", false, false),
            ("git://example.org/a.git", false, false),
            ("ext::sh -c 'touch /tmp/x'", false, false),
            ("--upload-pack=touch /tmp/x", false, false),
            ("ssh://-oProxyCommand=x/a", false, false),
            ("git@-oProxyCommand=x:a", false, false),
            ("git@host:-a", false, false),
            ("file://host/a", false, false),
            ("../a", false, false),
            ("", false, false),
            ("https://example.org/a\nb", false, false),
        ];
        for (url, strict, open) in table {
            assert_eq!(Repository::parse(url, false).is_ok(), strict, "{url}, without files");
            assert_eq!(Repository::parse(url, true).is_ok(), open, "{url}, with files");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        let url = "https://user:secret@example.org/a.git";
        let repository = Repository::parse(url, false).expect("allowed");
        assert_eq!(repository.shown(), "https://***@example.org/a.git");
        let message = repository.redact(&format!("fatal: unable to access '{url}/': for user:secret"));
        assert!(!message.contains("secret"), "{message}");
    }
}
