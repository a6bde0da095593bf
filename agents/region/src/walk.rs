//! Every artifact of which the region's bucket has a root, one after the other.

use std::collections::VecDeque;

use longshore_artifact::{ArtifactRoot, ROOT_BYTES_MAX, ROOT_PREFIX, root_key};
use longshore_s3::{Bucket, Error, Pages};
use longshore_schemas::ArtifactId;

pub(crate) struct Walk {
    pages: Pages,
    page: VecDeque<ArtifactId>,
}

impl Walk {
    pub(crate) fn new(bucket: &Bucket) -> Self {
        Self { pages: bucket.list(ROOT_PREFIX), page: VecDeque::new() }
    }

    /// In the order of their names.
    pub(crate) async fn next(&mut self) -> Result<Option<ArtifactId>, Error> {
        loop {
            if let Some(artifact) = self.page.pop_front() {
                return Ok(Some(artifact));
            }
            let Some(page) = self.pages.next().await? else { return Ok(None) };
            let artifact = |key: &str| key.strip_prefix(ROOT_PREFIX)?.strip_suffix(".json")?.parse::<ArtifactId>().ok();
            self.page.extend(page.iter().filter_map(|object| artifact(&object.key)));
        }
    }
}

/// The root as it is in the bucket: `None` if there is none, an error of its own if it cannot be used.
pub(crate) async fn read(
    bucket: &Bucket,
    artifact: &ArtifactId,
) -> Result<Option<Result<ArtifactRoot, longshore_artifact::Error>>, Error> {
    match bucket.get(&root_key(artifact), ROOT_BYTES_MAX as u64).await {
        Ok(json) => Ok(Some(ArtifactRoot::from_json(artifact, &json))),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
