//! Servers of several machines: what each machine is told, in scripts, Compose and Kubernetes.
//!
//! vLLM 0.32.0 (`entrypoints/cli/serve.py`): the machine of rank 0 serves HTTP, the others run `--headless`. Under Ray
//! (`v1/executor/ray_utils.py`) one machine runs the server, which waits half an hour for the GPUs of the others; those only
//! join the cluster. SGLang 0.5.23 starts the same command everywhere.

use serde::Serialize;

use super::super::quote::{yaml, yaml_without_variables};
use super::Server;

/// Port of the head at which SGLang's ranks find each other; its own examples use it.
const SGLANG_PORT: u16 = 20_000;
/// Port of Ray's head; Ray's default.
pub const RAY_PORT: u16 = 6379;

/// Who puts the ranks on the machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Executor {
    /// The engine itself: each machine starts its own part.
    #[default]
    Own,
    /// A Ray cluster: the head starts everything.
    Ray,
}

/// Several machines that run one server together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Nodes {
    /// Machines.
    pub count: u64,
    /// GPUs of each.
    pub gpus_each: u64,
    /// Who puts the ranks on them.
    pub executor: Executor,
}

/// What one container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// All of a server.
    Alone,
    /// The part that answers requests, on the first of several machines.
    Head,
    /// The rest, on each of the others.
    Worker,
}

impl Role {
    /// Whether requests are answered here.
    pub fn answers(self) -> bool {
        self != Self::Worker
    }
}

/// How a file spells what differs between machines.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    /// This machine's number.
    pub rank: &'static str,
    /// An address of the head.
    pub head: &'static str,
}

impl Places {
    /// In a shell, quoted.
    pub const SHELL: Self = Self {
        rank: "\"$NODE_RANK\"",
        head: "\"$HEAD_ADDRESS\"",
    };
    /// In a Compose file, which stops where one is not set.
    pub const COMPOSE: Self = Self {
        rank: "${NODE_RANK:?set it to 0 on the head, to 1 on the next machine, and so on}",
        head: "${HEAD_ADDRESS:?set it to an address of the head that all machines reach}",
    };
    /// In a pod of a `LeaderWorkerSet` (kubernetes-sigs/lws v0.9.0, `api/leaderworkerset/v1`), whose controller sets both.
    pub const KUBERNETES: Self = Self {
        rank: "$(LWS_WORKER_INDEX)",
        head: "$(LWS_LEADER_ADDRESS)",
    };
}

/// A word of a container's command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// Itself, whatever it holds.
    Plain(String),
    /// With variables that Compose or Kubernetes is to replace.
    Open(String),
}

impl Word {
    /// As a YAML string.
    pub fn yaml(&self) -> String {
        match self {
            Self::Plain(word) => yaml_without_variables(word),
            Self::Open(word) => yaml(word),
        }
    }
}

/// A container's program and the words after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// In place of the image's own entry point.
    pub entry: Vec<Word>,
    /// The rest.
    pub words: Vec<Word>,
}

/// Starts Ray's head and then what follows as the shell's own words.
pub const RAY_HEAD: &str = "ray start --head --port=6379 && exec \"$@\"";

/// Joins the head's cluster, as soon as there is one, and again should it have gone.
pub fn ray_worker(head: &str) -> String {
    format!("until ray start --address={head}:{RAY_PORT} --block; do sleep 5; done")
}

impl Server {
    /// Whether Ray runs the ranks.
    pub fn by_ray(&self) -> bool {
        self.nodes.is_some_and(|n| n.executor == Executor::Ray)
    }

    /// What this machine is told besides what all are.
    pub fn node_groups(&self, role: Role, places: Places) -> Vec<Vec<String>> {
        if self.nodes.is_none() || self.by_ray() || role == Role::Alone {
            return Vec::new();
        }
        let pair = |flag: &str, value: String| vec![flag.to_owned(), value];
        let mut groups = vec![pair("--node-rank", places.rank.to_owned())];
        if self.engine == "sglang" {
            groups.push(pair("--dist-init-addr", format!("{}:{SGLANG_PORT}", places.head)));
        } else {
            groups.push(pair("--master-addr", places.head.to_owned()));
            if role == Role::Worker {
                groups.push(vec!["--headless".to_owned()]);
            }
        }
        groups
    }

    /// All words of one machine's engine, its number and the head's address as in a container of rank 1.
    pub fn node_words(&self, container: bool) -> Vec<String> {
        const EXAMPLE: Places = Places {
            rank: "1",
            head: "10.0.0.1",
        };
        let own = self.node_groups(Role::Worker, EXAMPLE);
        self.words(container)
            .into_iter()
            .chain(own.into_iter().flatten())
            .collect()
    }

    /// What a container of this role runs.
    pub fn command(&self, role: Role, places: Places) -> Command {
        let plain = |word: &str| Word::Plain(word.to_owned());
        let program = self.program(true);
        let engine = || self.words(true).into_iter().map(Word::Plain);
        if self.by_ray() && role == Role::Worker {
            return Command {
                entry: vec![plain("sh"), plain("-c"), Word::Open(ray_worker(places.head))],
                words: Vec::new(),
            };
        }
        if self.by_ray() {
            return Command {
                entry: ["sh", "-c", RAY_HEAD, "sh"].into_iter().map(plain).collect(),
                words: program.iter().map(|w| plain(w)).chain(engine()).collect(),
            };
        }
        let own = self.node_groups(role, places).into_iter().flatten();
        let own = own.map(|word| {
            if word.contains('$') {
                Word::Open(word)
            } else {
                Word::Plain(word)
            }
        });
        Command {
            entry: program.iter().map(|w| plain(w)).collect(),
            words: engine().chain(own).collect(),
        }
    }
}
