//! One small value on disk: written whole, synced, then named; so a power cut leaves the old value or the new one.
//!
//! The file is JSON: `{"generation": 7, "content": …}`. The generation grows with each write, so that people and tests can
//! tell two states apart.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Error, durable};

#[derive(Serialize)]
struct StoredRef<'a, T> {
    generation: u64,
    content: &'a T,
}

#[derive(Deserialize)]
struct Stored<T> {
    generation: u64,
    content: T,
}

/// A value and its file. One ledger per file: it does not watch for other writers.
#[derive(Debug)]
pub struct Ledger<T> {
    path: PathBuf,
    generation: u64,
    content: T,
}

impl<T: Serialize + DeserializeOwned> Ledger<T> {
    /// Reads the file; if there is none, begins with `initial`, which is written with the first [`Ledger::store`].
    pub fn open(path: impl Into<PathBuf>, initial: T) -> Result<Self, Error> {
        let path = path.into();
        let Some(bytes) = durable::read(&path)? else {
            return Ok(Self { path, generation: 0, content: initial });
        };
        let stored: Stored<T> = serde_json::from_slice(&bytes).map_err(|error| Error::content(&path, &error))?;
        Ok(Self { path, generation: stored.generation, content: stored.content })
    }

    pub fn content(&self) -> &T {
        &self.content
    }

    /// 0 before the first write.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes this the content, durably. After an error the ledger and the file are as before.
    pub fn store(&mut self, content: T) -> Result<(), Error> {
        let generation = self.generation + 1;
        let json = serde_json::to_vec_pretty(&StoredRef { generation, content: &content });
        let json = json.map_err(|error| Error::content(&self.path, &error))?;
        durable::write(&self.path, &json, durable::PRIVATE_MODE)?;
        (self.generation, self.content) = (generation, content);
        Ok(())
    }

    /// As [`Ledger::store`], by changing a copy; nothing is written if the copy comes out equal.
    pub fn update(&mut self, change: impl FnOnce(&mut T)) -> Result<(), Error>
    where
        T: Clone + PartialEq,
    {
        let mut content = self.content.clone();
        change(&mut content);
        if content == self.content { Ok(()) } else { self.store(content) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    type Goals = BTreeMap<String, u64>;

    #[test]
    fn what_was_stored_is_there_after_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("goals.json");
        let mut ledger = Ledger::<Goals>::open(&path, Goals::new()).expect("new");
        assert_eq!(ledger.generation(), 0);
        ledger.store(Goals::from([("web".to_owned(), 1)])).expect("stored");
        ledger.update(|goals| *goals.entry("web".to_owned()).or_default() = 2).expect("updated");
        ledger.update(|_| {}).expect("nothing to do");
        let again = Ledger::<Goals>::open(&path, Goals::new()).expect("opened");
        assert_eq!((again.generation(), again.content().get("web")), (2, Some(&2)));
    }

    #[test]
    fn a_broken_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("goals.json");
        std::fs::write(&path, "{\"generation\": 1, \"content\"").expect("written");
        let error = Ledger::<Goals>::open(&path, Goals::new()).expect_err("broken");
        assert!(error.to_string().contains("goals.json"), "{error}");
    }
}
