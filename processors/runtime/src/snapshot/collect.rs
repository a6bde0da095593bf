//! What becomes of old snapshots.
//!
//! A node removes its own beyond the number kept, and then the pieces of its own that none of the rest refers to: it writes and
//! removes one after the other, so none of these is about to be used. Of other nodes it touches only what is so old that
//! they must be gone for good.

use std::{collections::BTreeSet, time::Duration};

use longshore_partition::chain;

use super::{
    Error, Snapshots, Snapshotter, Wrong,
    description::{self, DESCRIPTION_BYTES_MAX, Description, Name},
};

/// After this time without a new one, the snapshots of another node are removed, if there are newer ones.
const OTHERS_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl Snapshots {
    /// The names of all, newest first.
    pub(super) async fn names(&self) -> Result<Vec<Name>, Error> {
        let objects = self.objects.list(description::descriptions()).await?;
        let mut names: Vec<_> = objects.iter().filter_map(|object| Name::of_key(&object.key)).collect();
        names.sort_unstable_by(|one, other| other.cmp(one));
        Ok(names)
    }

    pub(super) async fn describe(&self, name: &Name) -> Result<Description, Wrong> {
        let bytes = self.objects.get(&name.key(), DESCRIPTION_BYTES_MAX).await?;
        Description::decode(&bytes.ok_or_else(|| Wrong::Description("it is gone".to_owned()))?)
    }

    /// The newest of this log that this release can use.
    pub(super) async fn newest(&self) -> Result<Option<(Name, Description)>, Error> {
        for name in self.names().await? {
            match self.describe(&name).await {
                Ok(description) if self.check(&description).await?.is_ok() => return Ok(Some((name, description))),
                Ok(_) => {}
                Err(Wrong::Objects(error)) => return Err(error.into()),
                Err(_) => {}
            }
        }
        Ok(None)
    }
}

impl Snapshotter {
    pub(super) async fn collect(&self) -> Result<(), Error> {
        let names = self.snapshots.names().await?;
        let (own, others): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.node == self.node);
        let newest = own.first().map(|name| name.at).unwrap_or_default();
        self.collect_own(own).await?;
        let mut nodes: BTreeSet<_> = others.iter().map(|name| &name.node).collect();
        nodes.retain(|node| {
            let last = others.iter().filter(|name| name.node == **node).map(|name| name.at).max().unwrap_or_default();
            newest.since(last) > OTHERS_KEPT
        });
        for node in nodes {
            self.collect_gone(others.iter().filter(|name| name.node == *node).cloned().collect()).await?;
        }
        Ok(())
    }

    async fn collect_own(&self, names: Vec<Name>) -> Result<(), Error> {
        let Snapshots { objects, settings, .. } = &self.snapshots;
        let (mut kept, mut referred) = (0, BTreeSet::new());
        for name in names {
            let described =
                if kept < settings.keep.max(1) { self.snapshots.describe(&name).await.map(Some) } else { Ok(None) };
            match described {
                Ok(Some(description)) => {
                    kept += 1;
                    referred
                        .extend(description.pieces().map(|piece| description::piece_key(&self.node, &piece.blake3)));
                }
                // Of a later release, which this node ran before: its pieces are not known.
                Err(Wrong::Format { .. }) => return Ok(()),
                Err(Wrong::Objects(error)) => return Err(error.into()),
                Err(wrong) => {
                    tracing::warn!(snapshot = name.key(), wrong = chain(&wrong), "removing a snapshot");
                    objects.delete(&name.key()).await?;
                }
                Ok(None) => objects.delete(&name.key()).await?,
            }
        }
        for piece in objects.list(&description::pieces_of(&self.node)).await? {
            if !referred.contains(&piece.key) {
                objects.delete(&piece.key).await?;
            }
        }
        Ok(())
    }

    /// Removes all of a node that is gone, if it was of this installation.
    async fn collect_gone(&self, names: Vec<Name>) -> Result<(), Error> {
        let Snapshots { objects, settings, .. } = &self.snapshots;
        let Some(first) = names.first() else { return Ok(()) };
        for name in &names {
            match self.snapshots.describe(name).await {
                Ok(description) if description.installation == settings.installation => {}
                Err(Wrong::Objects(error)) => return Err(error.into()),
                _ => return Ok(()),
            }
        }
        tracing::info!(node = first.node, snapshots = names.len(), "removing the snapshots of a node that is gone");
        // Descriptions first: nothing refers to a piece that is not there.
        for name in &names {
            objects.delete(&name.key()).await?;
        }
        for piece in objects.list(&description::pieces_of(&first.node)).await? {
            objects.delete(&piece.key).await?;
        }
        Ok(())
    }
}
