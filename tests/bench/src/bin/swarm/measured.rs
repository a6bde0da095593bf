//! Ours on networks of several shapes: what the simulator says of each is held against it, after it was fitted to two of them.

use std::{fs::File, io::Write as _, path::Path};

use anyhow::{Context as _, Result, bail};
use longshore_bench::memory;
use serde_json::json;

use crate::{
    Files, MIB, Round, folder,
    lab::{Lab, Layout},
    ours::Ours,
    rates::Rates,
};

const BYTES: usize = 48 * MIB;
/// As our packs are, all but the last.
const PACK_BYTES: usize = 4 * MIB;
/// A round that the machine was too busy for is played again so often.
const TRIES: usize = 3;

struct Shape {
    name: &'static str,
    layout: Layout,
    /// The simulator may be fitted to it.
    calibrates: bool,
}

const fn shape(name: &'static str, racks: usize, nodes_per_rack: usize, kbit: [u32; 3], calibrates: bool) -> Shape {
    let [node_kbit, uplink_kbit, bucket_kbit] = kbit;
    Shape { name, layout: Layout { racks, nodes_per_rack, node_kbit, uplink_kbit, bucket_kbit }, calibrates }
}

/// Bound by nodes, by the bucket, by nodes of many small racks, by uplinks, and by nodes of few large racks.
const SHAPES: [Shape; 5] = [
    shape("4 racks of 5", 4, 5, [32_000, 40_000, 128_000], true),
    shape("a slow bucket", 3, 4, [44_000, 44_000, 30_000], true),
    shape("6 racks of 3", 6, 3, [32_000, 32_000, 96_000], false),
    shape("narrow uplinks", 3, 6, [44_000, 26_000, 66_000], false),
    shape("2 racks of 8", 2, 8, [36_000, 72_000, 72_000], false),
];

/// Writes a line for each.
pub(crate) async fn write(file: &Path) -> Result<()> {
    let mut file = File::create(file).with_context(|| file.display().to_string())?;
    for (at, shape) in SHAPES.iter().enumerate() {
        let folder = folder()?;
        let lab = Lab::build(shape.layout)?;
        let rates = Rates::measure(&lab)?;
        let files = Files::make(folder.path(), BYTES, at as u64)?;
        memory::warm((BYTES * shape.layout.nodes()) as u64);
        let round = valid(&lab, folder.path(), &files).await.context(shape.name)?;
        eprintln!(
            "swarm: {}: {:.3} s, at least {:.3} s, CPU {:.0} %",
            shape.name,
            round.max(),
            rates.bound(&lab, BYTES as u64),
            round.busy * 100.0
        );
        let line = json!({
            "topology": topology(shape, &rates),
            "measured_s": round.max(),
            "calibrates": shape.calibrates,
            "cpu_busy": round.busy,
        });
        writeln!(file, "{line}")?;
    }
    Ok(())
}

async fn valid(lab: &Lab, folder: &Path, files: &Files) -> Result<Round> {
    for _ in 0..TRIES {
        let work = tempfile::tempdir_in(folder)?;
        let ours = Ours::start(lab, work.path()).await?;
        let (round, _) = ours.deploy(ours.publish(&files.new).await?).await?;
        if round.is_valid() {
            return Ok(round);
        }
        eprintln!("swarm: void, CPU {:.0} % ({:.2} s)", round.busy * 100.0, round.max());
    }
    bail!("the machine was too busy, {TRIES} times")
}

/// Fields of the simulator's scenario, with the rates that plain TCP has.
fn topology(shape: &Shape, rates: &Rates) -> serde_json::Value {
    let Layout { racks, nodes_per_rack, .. } = shape.layout;
    let (node, uplink, bucket) = (rates.node * 8.0, rates.uplink * 8.0, rates.bucket * 8.0);
    json!({
        "name": shape.name,
        "nodes": racks * nodes_per_rack,
        "nodes_per_rack": nodes_per_rack,
        "artifact_bytes": BYTES,
        "pack_bytes": PACK_BYTES,
        "node_up_bits_per_second": node,
        "node_down_bits_per_second": node,
        "rack_up_bits_per_second": uplink,
        "rack_down_bits_per_second": uplink,
        "bucket_bits_per_second": bucket,
        // The region has been up for longer than that.
        "policy": { "settle_seconds": 0 },
    })
}
