//! Links with a capacity, and flows that share them max-min fairly.
//!
//! ```text
//! every step:   flows, each with its links and a cap ──share_out──▶ a rate for each      (progressive filling, in rounds)
//! in between:   a flow begins ──admit──▶ what its links have left;     a flow ends ──release──▶ that is left again
//! ```
//!
//! Progressive filling raises all rates together; what a full link holds back stays, the others go on. Here a round does that for
//! all links that are the tightest of *each* of their flows, at once: it gives the same rates in a few rounds rather than one
//! for each link. A flow that its own cap holds back frees the rest of its share for the others.

/// Most links that a flow crosses: the sender's, its rack's, the spine, the receiver's rack's and the receiver's.
pub const PATH_MAX: usize = 5;
/// Flows whose bottleneck is not found until then take their share of what is left: never too much, perhaps too little.
const ROUNDS_MAX: usize = 24;

/// The numbers of links, in any order, filled up with [`Network::FREE`].
pub type Path = [u32; PATH_MAX];

#[derive(Debug, Default)]
pub struct Network {
    capacity: Vec<f64>,
    used: Vec<f64>,
    flows: Vec<u32>,
    // Of `share_out` alone, kept to save allocations.
    left: Vec<f64>,
    open: Vec<u32>,
    share: Vec<f64>,
    /// What is less than this is less than the share.
    firm: Vec<f64>,
    tightest: Vec<bool>,
    waiting: Vec<u32>,
    pub(crate) rounds: u64,
}

/// Flows in dense arrays, one place each.
#[derive(Debug, Default)]
pub struct Flows {
    pub path: Vec<Path>,
    /// In bytes a second of the wire, as all rates here.
    pub cap: Vec<f64>,
    pub rate: Vec<f64>,
}

impl Network {
    /// The link without a limit.
    pub const FREE: u32 = 0;

    /// `capacity` is of the links 1, 2, …
    pub fn new(capacity: impl IntoIterator<Item = f64>) -> Self {
        let capacity: Vec<f64> = std::iter::once(f64::INFINITY).chain(capacity).collect();
        let links = capacity.len();
        let (used, flows, left) = (vec![0.0; links], vec![0; links], capacity.clone());
        let (open, tightest) = (vec![0; links], vec![true; links]);
        let (share, firm) = (vec![0.0; links], vec![0.0; links]);
        Self { capacity, used, flows, left, open, share, firm, tightest, waiting: Vec::new(), rounds: 0 }
    }

    pub fn capacity(&self, link: u32) -> f64 {
        self.capacity[link as usize]
    }

    pub fn used(&self, link: u32) -> f64 {
        self.used[link as usize]
    }

    /// Flows that there are keep their rates until they are shared out.
    pub fn set_capacity(&mut self, link: u32, capacity: f64) {
        self.capacity[link as usize] = capacity;
    }

    /// What a flow that begins now can have without taking from others.
    pub fn admit(&mut self, path: &Path, cap: f64) -> f64 {
        let left = |link: &u32| self.capacity[*link as usize] - self.used[*link as usize];
        let rate = links(path).map(left).fold(cap, f64::min).max(0.0);
        for link in links(path) {
            self.used[*link as usize] += rate;
            self.flows[*link as usize] += 1;
        }
        rate
    }

    /// About what it will have once rates are shared out.
    pub fn fair(&self, path: &Path) -> f64 {
        let share = |link: &u32| self.capacity[*link as usize] / f64::from(self.flows[*link as usize].max(1));
        links(path).map(share).fold(f64::INFINITY, f64::min)
    }

    pub fn release(&mut self, path: &Path, rate: f64) {
        for link in links(path) {
            self.used[*link as usize] -= rate;
            self.flows[*link as usize] -= 1;
        }
    }

    /// Max-min fair rates for all flows. Shares that differ by less than `tolerance` (a fraction) count as equal.
    pub fn share_out(&mut self, flows: &mut Flows, tolerance: f64) {
        self.left.copy_from_slice(&self.capacity);
        self.open.copy_from_slice(&self.flows);
        self.waiting.clear();
        self.waiting.extend(0..flows.path.len() as u32);
        for round in 1.. {
            if self.waiting.is_empty() {
                break;
            }
            self.rounds += 1;
            self.divide(tolerance);
            self.compare(flows);
            self.freeze(flows, round == ROUNDS_MAX);
        }
        for link in 1..self.capacity.len() {
            self.used[link] = self.capacity[link] - self.left[link];
        }
    }

    fn divide(&mut self, tolerance: f64) {
        for link in 0..self.capacity.len() {
            let share = self.left[link].max(0.0) / f64::from(self.open[link]);
            self.share[link] = if self.open[link] == 0 { f64::INFINITY } else { share };
            self.firm[link] = self.share[link] * (1.0 - tolerance);
        }
        self.tightest.fill(true);
    }

    /// What each flow could have, and which links could give more than one of their flows can take.
    fn compare(&mut self, flows: &mut Flows) {
        let Self { waiting, share, firm, tightest, .. } = self;
        for flow in waiting.iter().map(|flow| *flow as usize) {
            let path = &flows.path[flow];
            let least =
                |least: f64, link: &u32| if share[*link as usize] < least { share[*link as usize] } else { least };
            let level = links(path).fold(flows.cap[flow], least);
            flows.rate[flow] = level;
            for link in links(path) {
                if level < firm[*link as usize] {
                    tightest[*link as usize] = false;
                }
            }
        }
    }

    fn freeze(&mut self, flows: &Flows, all: bool) {
        let Self { waiting, firm, tightest, left, open, .. } = self;
        waiting.retain(|&flow| {
            let (path, level) = (&flows.path[flow as usize], flows.rate[flow as usize]);
            let is_held_back = |link: &u32| tightest[*link as usize] && firm[*link as usize] <= level;
            let frozen = all || flows.cap[flow as usize] <= level || links(path).any(is_held_back);
            if frozen {
                for link in links(path) {
                    left[*link as usize] -= level;
                    open[*link as usize] -= 1;
                }
            }
            !frozen
        });
    }
}

fn links(path: &Path) -> impl Iterator<Item = &u32> {
    path.iter().take_while(|link| **link != Network::FREE)
}

impl Flows {
    pub fn push(&mut self, path: Path, cap: f64, rate: f64) {
        self.path.push(path);
        self.cap.push(cap);
        self.rate.push(rate);
    }

    pub fn truncate(&mut self, len: usize) {
        self.path.truncate(len);
        self.cap.truncate(len);
        self.rate.truncate(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const NONE: f64 = f64::INFINITY;

    fn shared(capacity: &[f64], flows: &[(&[u32], f64)]) -> (Network, Flows) {
        let mut network = Network::new(capacity.iter().copied());
        let mut list = Flows::default();
        for (links, cap) in flows {
            let mut path = [Network::FREE; PATH_MAX];
            path[..links.len()].copy_from_slice(links);
            let rate = network.admit(&path, *cap);
            list.push(path, *cap, rate);
        }
        network.share_out(&mut list, 1e-12);
        (network, list)
    }

    #[test]
    fn known_answers() {
        type Table<'a> = &'a [(&'a [f64], &'a [(&'a [u32], f64)], &'a [f64])];
        let table: Table<'_> = &[
            // One link, three flows.
            (&[9.0], &[(&[1], NONE), (&[1], NONE), (&[1], NONE)], &[3.0, 3.0, 3.0]),
            // A cap leaves the rest to the others.
            (&[9.0], &[(&[1], 1.0), (&[1], NONE), (&[1], NONE)], &[1.0, 4.0, 4.0]),
            // The long flow is held back by the tighter link.
            (&[10.0, 4.0], &[(&[1, 2], NONE), (&[1], NONE), (&[2], NONE)], &[2.0, 8.0, 2.0]),
            // A parking lot: every link full.
            (&[1.0, 1.0, 1.0], &[(&[1, 2, 3], NONE), (&[1], NONE), (&[2], NONE), (&[3], NONE)], &[0.5; 4]),
            // Bottlenecks that follow from one another.
            (&[2.0, 6.0, 12.0], &[(&[1], NONE), (&[1, 2], NONE), (&[2, 3], NONE), (&[3], NONE)], &[1.0, 1.0, 5.0, 7.0]),
            // A link that is cut.
            (&[0.0, 5.0], &[(&[1, 2], NONE), (&[2], NONE)], &[0.0, 5.0]),
        ];
        for (capacity, flows, expected) in table {
            let (_, list) = shared(capacity, flows);
            for (rate, expected) in list.rate.iter().zip(*expected) {
                assert!((rate - expected).abs() < 1e-9, "{capacity:?} {flows:?}: {:?}", list.rate);
            }
        }
    }

    #[test]
    fn no_link_is_overfull_and_every_flow_has_a_bottleneck() {
        let mut random = Random::new(7, "network");
        for _ in 0..300 {
            let links = 1 + random.below(12);
            let capacity: Vec<f64> = (0..links).map(|_| 1.0 + f64::from(random.below(100))).collect();
            let flows: Vec<(Vec<u32>, f64)> = (0..1 + random.below(60))
                .map(|_| {
                    let hops = 1 + random.below(links.min(PATH_MAX as u32));
                    let path = random.some_of(links, hops).into_iter().map(|link| link + 1).collect();
                    let cap = if random.below(3) == 0 { f64::from(random.below(20)) } else { NONE };
                    (path, cap)
                })
                .collect();
            let borrowed: Vec<(&[u32], f64)> = flows.iter().map(|(path, cap)| (path.as_slice(), *cap)).collect();
            let (network, list) = shared(&capacity, &borrowed);
            check(&network, &list, links);
        }
    }

    fn check(network: &Network, list: &Flows, links: u32) {
        let on = |link: u32| (0..list.rate.len()).filter(move |flow| list.path[*flow].contains(&link));
        for link in 1..=links {
            let sum: f64 = on(link).map(|flow| list.rate[flow]).sum();
            assert!(sum <= network.capacity(link) * (1.0 + 1e-9), "link {link}: {sum}");
            assert!((sum - network.used(link)).abs() < 1e-6, "link {link}: {sum}, noted {}", network.used(link));
        }
        for flow in 0..list.rate.len() {
            let rate = list.rate[flow];
            let is_bottleneck = |link: &u32| {
                let full = network.used(*link) >= network.capacity(*link) * (1.0 - 1e-9);
                *link != Network::FREE && full && on(*link).all(|other| list.rate[other] <= rate * (1.0 + 1e-9))
            };
            let capped = rate >= list.cap[flow] * (1.0 - 1e-9);
            assert!(capped || list.path[flow].iter().any(is_bottleneck), "flow {flow} of {list:?}");
        }
    }

    #[test]
    fn who_begins_takes_only_what_is_left() {
        let mut network = Network::new([10.0, 4.0]);
        let path = |links: [u32; 2]| [links[0], links[1], 0, 0, 0];
        assert_eq!(network.admit(&path([1, 0]), 7.0), 7.0);
        assert_eq!(network.admit(&path([1, 2]), NONE), 3.0);
        assert_eq!(network.admit(&path([1, 2]), NONE), 0.0);
        assert!((network.fair(&path([1, 2])) - 2.0).abs() < 1e-9);
        network.release(&path([1, 0]), 7.0);
        assert_eq!(network.admit(&path([1, 2]), NONE), 1.0);
    }
}
