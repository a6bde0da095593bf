//! Where the server is and who asks: flags → environment → what `longshore up` left in its data folder.

use std::path::{Path, PathBuf};

use longshore_schemas::RegionName;
use longshore_worker::{Url, client::Client};
use serde::{Deserialize, Serialize};

use crate::{args::Connection, error::Error};

/// The file in the data folder of `longshore up`, there while it is ready.
pub(crate) const UP_FILE: &str = "up.json";
const ADDRESS_DEFAULT: &str = "http://127.0.0.1:7070";

/// How to reach a running `longshore up`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct UpFile {
    pub(crate) api: String,
    /// The embedded S3 server.
    pub(crate) s3: String,
    pub(crate) regions: Vec<UpRegion>,
    pub(crate) tokens: UpTokens,
    pub(crate) keys: UpKeys,
}

/// Where the nodes of a region connect to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct UpRegion {
    pub(crate) region: RegionName,
    pub(crate) address: String,
    /// The file that they know it by.
    pub(crate) authority: PathBuf,
}

/// Files that hold a token each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct UpTokens {
    pub(crate) admin: PathBuf,
    pub(crate) worker: PathBuf,
    pub(crate) node: PathBuf,
}

/// Files of public keys, which nodes need.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct UpKeys {
    pub(crate) goals: PathBuf,
    pub(crate) provenance: PathBuf,
}

/// Who the command speaks as, unless a token was given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Speaker {
    Person,
    Worker,
}

/// A server's address and the token for it.
#[derive(Debug, PartialEq)]
pub(crate) struct Target {
    pub(crate) api: Url,
    pub(crate) token: Option<String>,
    /// Where an address was looked for and not found, so that the default one is tried.
    pub(crate) guessed_without: Option<PathBuf>,
}

impl Target {
    pub(crate) fn find(connection: &Connection, speaker: Speaker) -> Result<Self, Error> {
        let up = UpFile::read(&connection.data)?;
        let api = match (&connection.api, &up) {
            (Some(api), _) => api.as_str(),
            (None, Some(up)) => &up.api,
            (None, None) => ADDRESS_DEFAULT,
        };
        let api =
            api.parse().map_err(|_| Error::Usage(format!("{api:?} is no URL; give one such as {ADDRESS_DEFAULT}")))?;
        let token = match (&connection.token, &connection.token_file, &up) {
            (Some(token), _, _) => Some(token.trim().to_owned()),
            (None, Some(path), _) => Some(read_token(path)?),
            // The tokens of this machine's `up` are nobody else's business.
            (None, None, Some(up)) if connection.api.as_ref().is_none_or(|api| same_server(api, &up.api)) => {
                let path = if speaker == Speaker::Worker { &up.tokens.worker } else { &up.tokens.admin };
                Some(read_token(path)?)
            }
            _ => None,
        };
        let guessed = connection.api.is_none() && up.is_none();
        Ok(Self { api, token, guessed_without: guessed.then(|| connection.data.join(UP_FILE)) })
    }

    pub(crate) fn client(self) -> Result<Client, Error> {
        Ok(Client::new(self.api, self.token.as_deref())?)
    }
}

fn same_server(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

fn read_token(path: &Path) -> Result<String, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Ok(_) => Err(Error::Usage(format!("the token file {path:?} is empty"))),
        Err(error) => Err(Error::Usage(format!("the token file {path:?} cannot be read: {error}"))),
    }
}

impl UpFile {
    /// None: no `longshore up` uses this data folder.
    pub(crate) fn read(data: &Path) -> Result<Option<Self>, Error> {
        let path = data.join(UP_FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::Usage(format!("{path:?} cannot be read: {error}"))),
        };
        let file = serde_json::from_slice(&text);
        file.map(Some)
            .map_err(|error| Error::Usage(format!("{path:?} is damaged ({error}); start `longshore up` again")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(data: &Path) -> Connection {
        Connection { api: None, token: None, token_file: None, data: data.to_owned() }
    }

    #[test]
    fn flags_come_before_what_up_left() {
        let dir = tempfile::tempdir().expect("a folder");
        let nothing = Target::find(&connection(dir.path()), Speaker::Person).expect("defaults");
        assert_eq!((nothing.api.as_str(), nothing.token), ("http://127.0.0.1:7070/", None));

        let keys = UpKeys { goals: dir.path().join("g"), provenance: dir.path().join("p") };
        let tokens = UpTokens { admin: dir.path().join("a"), worker: dir.path().join("w"), node: dir.path().join("n") };
        std::fs::write(&tokens.admin, "ls_admin_1\n").expect("written");
        std::fs::write(&tokens.worker, "ls_worker_1\n").expect("written");
        let up =
            UpFile { api: "http://127.0.0.1:1234".to_owned(), s3: String::new(), regions: Vec::new(), tokens, keys };
        std::fs::write(dir.path().join(UP_FILE), serde_json::to_vec(&up).expect("JSON")).expect("written");

        let flags = connection(dir.path());
        let person = Target::find(&flags, Speaker::Person).expect("from up.json");
        assert_eq!((person.api.as_str(), person.token.as_deref()), ("http://127.0.0.1:1234/", Some("ls_admin_1")));
        let worker = Target::find(&flags, Speaker::Worker).expect("from up.json");
        assert_eq!(worker.token.as_deref(), Some("ls_worker_1"));

        let elsewhere = Connection { api: Some("https://longshore.example".to_owned()), ..connection(dir.path()) };
        let elsewhere = Target::find(&elsewhere, Speaker::Person).expect("a flag");
        assert_eq!(elsewhere.token, None, "a local token is not sent to another server");
        let token = Connection { token: Some("ls_viewer_1".to_owned()), ..connection(dir.path()) };
        assert_eq!(Target::find(&token, Speaker::Person).expect("a flag").token.as_deref(), Some("ls_viewer_1"));
    }

    #[test]
    fn broken_files_are_named() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join(UP_FILE), "{").expect("written");
        let error = Target::find(&connection(dir.path()), Speaker::Person).expect_err("damaged");
        assert!(error.to_string().contains("up.json"), "{error}");
    }
}
