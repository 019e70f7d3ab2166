//! The network between machines, where ranks of one engine are on several.
//!
//! Sums go through every machine's own links first, then between machines, each GPU with its part over its own share of the
//! network, as NCCL does it. The time between machines is NCCL's own estimate for a tree (NCCL 2.30.7, `src/graph/tuning.cc`:
//! `2 log2(machines)` latencies besides the bytes over the bandwidth).
//!
//! Models: sums over tensor-parallel ranks and exchanges of experts' tokens that span machines, and what pipeline stages hand
//! on. Does not model: congestion, the topology of switches, overlap of communication and computation.

/// Machines and what joins them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Network {
    /// Consecutive ranks on one machine.
    pub gpus_per_machine: u64,
    /// What one GPU sends to other machines while all send, bytes/s in one direction.
    pub bandwidth_bytes_per_s: f64,
    /// Of one hop, s.
    pub latency_s: f64,
}

impl Network {
    /// Machines that `ranks` consecutive ranks are on.
    pub fn machines(&self, ranks: u64) -> u64 {
        ranks.div_ceil(self.gpus_per_machine.max(1))
    }

    /// Ranks of `ranks` that share a machine.
    pub fn together(&self, ranks: u64) -> u64 {
        ranks.min(self.gpus_per_machine.max(1))
    }

    /// Seconds of the part between machines of a sum of `bytes` over `ranks` consecutive ranks; 0 on one machine.
    pub fn sum_s(&self, ranks: u64, bytes: f64) -> f64 {
        let machines = self.machines(ranks);
        if machines <= 1 {
            return 0.0;
        }
        let n = machines as f64;
        let part = bytes / self.together(ranks) as f64;
        2.0 * (n - 1.0) / n * part / self.bandwidth_bytes_per_s + 2.0 * n.log2() * self.latency_s
    }

    /// How many of the hand-overs between `stages` pipeline stages of `ranks` ranks each go to another machine.
    pub fn crossings(&self, ranks: u64, stages: u64) -> u64 {
        let machine = |stage: u64| stage * ranks.max(1) / self.gpus_per_machine.max(1);
        (1..stages).filter(|&s| machine(s) != machine(s - 1)).count() as u64
    }

    /// Seconds of handing `bytes` to the next stage of `ranks` ranks on another machine: each rank sends its part (vLLM 0.32.0,
    /// `vllm/distributed/parallel_state.py`, `send_tensor_dict` with an all-gather group).
    pub fn hand_over_s(&self, ranks: u64, bytes: f64) -> f64 {
        bytes / self.together(ranks) as f64 / self.bandwidth_bytes_per_s + self.latency_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NDR: Network = Network {
        gpus_per_machine: 8,
        bandwidth_bytes_per_s: 50e9,
        latency_s: 5e-6,
    };

    #[test]
    fn one_machine_needs_no_network_and_more_machines_take_longer() {
        assert!(NDR.sum_s(8, 1e9).abs() < 1e-15);
        let mut before = 0.0;
        for ranks in [16, 24, 32, 64] {
            let now = NDR.sum_s(ranks, 1e6);
            assert!(now > before, "{ranks}");
            before = now;
        }
        // 1 MB over two machines of eight: each GPU sends and gets 62.5 kB twice.
        assert!((NDR.sum_s(16, 1e6) - (125e3 / 50e9 + 2.0 * 5e-6)).abs() < 1e-12);
    }

    #[test]
    fn stages_cross_where_their_ranks_change_machines() {
        assert_eq!(NDR.crossings(8, 2), 1);
        assert_eq!(NDR.crossings(4, 4), 1);
        assert_eq!(NDR.crossings(2, 4), 0);
        assert_eq!(NDR.crossings(16, 2), 1);
        assert_eq!(NDR.crossings(8, 1), 0);
    }
}
