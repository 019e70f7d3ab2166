//! Models, GPUs, engines and cache types side by side.

use kvwise_core::units::{gib, grouped, human_bytes};
use serde::Serialize;

use super::table::{Align, Grid};
use crate::plot::{LineChart, Series};

/// Version of [`Comparison`].
pub const SCHEMA: &str = "kvwise.compare/1";

/// What the table shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum View {
    /// Bytes of the KV cache by model and context.
    Models,
    /// Requests that fit, by model, GPU and context.
    Capacity,
    /// Memory with and without paging.
    Fragmentation,
}

/// Title and cell of a column.
type Column = (&'static str, fn(&Row) -> String);

/// Everything that was compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// What the table shows.
    pub view: View,
    /// Contexts, tokens.
    pub contexts: Vec<u64>,
    /// One row a combination, in the order asked for.
    pub rows: Vec<Row>,
}

/// One combination.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Hub id or path.
    pub model: String,
    /// Kind of GPU.
    pub gpu: String,
    /// GPUs.
    pub gpus: u64,
    /// Engine.
    pub engine: String,
    /// Its version.
    pub engine_version: Option<String>,
    /// Type of the cache.
    pub kv_cache_dtype: String,
    /// Parameters.
    pub params: u64,
    /// Decoder layers.
    pub layers: Option<u64>,
    /// Weights of one GPU.
    pub weights_bytes_per_gpu: u64,
    /// Bytes that one more token takes on one GPU.
    pub kv_bytes_per_token: Option<u64>,
    /// Memory for the cache of one GPU.
    pub kv_cache_bytes_per_gpu: Option<u64>,
    /// Tokens that the cache holds.
    pub capacity_tokens: Option<u64>,
    /// Longest request that the model and engine accept.
    pub max_model_len: Option<u64>,
    /// Whether the engine starts and holds one request of the first context.
    pub fits: bool,
    /// Why not.
    pub why_not: Option<String>,
    /// One cell a context.
    pub contexts: Vec<Cell>,
    /// One a scenario, in the view of fragmentation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scenarios: Vec<Scenario>,
}

/// One context of a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// Tokens of a request.
    pub context: u64,
    /// Bytes of its cache on one GPU.
    pub request_bytes_per_gpu: u64,
    /// Requests that fit at once.
    pub max_concurrency: u64,
    /// Whether the model accepts requests of this length.
    pub accepted: bool,
}

/// Memory of some requests, by how it is reserved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scenario {
    /// Requests.
    pub requests: u64,
    /// Tokens that a request has.
    pub tokens: u64,
    /// Tokens that a server without paging reserves for it.
    pub reserved_tokens: u64,
    /// Bytes without paging.
    pub reserved_bytes: u64,
    /// Bytes in the engine's blocks.
    pub paged_bytes: u64,
}

impl Scenario {
    /// Share that paging saves, in percent.
    pub fn saved_percent(&self) -> f64 {
        100.0 * (1.0 - self.paged_bytes as f64 / self.reserved_bytes.max(1) as f64)
    }
}

impl Comparison {
    /// As rows and columns.
    pub fn grid(&self) -> Grid {
        match self.view {
            View::Models => self.models(),
            View::Capacity => self.capacity(),
            View::Fragmentation => self.fragmentation(),
        }
    }

    /// Columns that differ between rows, besides the model.
    fn differing(&self) -> Vec<Column> {
        let columns: [Column; 3] = [
            ("GPU", |r| format!("{} x {}", r.gpus, r.gpu)),
            ("engine", |r| r.engine.clone()),
            ("KV type", |r| r.kv_cache_dtype.clone()),
        ];
        let differs = |of: fn(&Row) -> String| {
            let mut values = self.rows.iter().map(of);
            let first = values.next();
            values.any(|v| Some(v) != first)
        };
        columns
            .into_iter()
            .filter(|(name, of)| {
                (*name == "GPU" && self.view == View::Capacity) || (*name != "GPU" && differs(*of))
            })
            .collect()
    }

    fn models(&self) -> Grid {
        let differing = self.differing();
        let titles: Vec<String> = self
            .contexts
            .iter()
            .map(|c| format!("at {}", grouped(*c)))
            .collect();
        let mut columns = vec![("model", Align::Left)];
        columns.extend(differing.iter().map(|(name, _)| (*name, Align::Left)));
        columns.extend([
            ("layers", Align::Right),
            ("weights", Align::Right),
            ("a token", Align::Right),
        ]);
        columns.extend(titles.iter().map(|t| (t.as_str(), Align::Right)));
        let mut grid = Grid::new(&columns);
        for row in &self.rows {
            let mut cells = vec![short(&row.model)];
            cells.extend(differing.iter().map(|(_, of)| of(row)));
            cells.push(row.layers.map_or_else(String::new, grouped));
            cells.push(human_bytes(row.weights_bytes_per_gpu));
            cells.push(row.kv_bytes_per_token.map_or_else(|| "-".to_owned(), human_bytes));
            cells.extend(row.contexts.iter().map(|c| {
                // A length that the model does not accept has bytes all the same; the star says so.
                let star = if c.accepted { "" } else { "*" };
                format!("{}{star}", human_bytes(c.request_bytes_per_gpu))
            }));
            grid.row(cells);
        }
        grid
    }

    fn capacity(&self) -> Grid {
        let differing = self.differing();
        let titles: Vec<String> = self
            .contexts
            .iter()
            .map(|c| format!("at {}", grouped(*c)))
            .collect();
        let mut columns = vec![("model", Align::Left)];
        columns.extend(differing.iter().map(|(name, _)| (*name, Align::Left)));
        columns.extend([("weights GiB", Align::Right), ("KV GiB", Align::Right)]);
        columns.extend(titles.iter().map(|t| (t.as_str(), Align::Right)));
        let mut grid = Grid::new(&columns);
        for row in &self.rows {
            let mut cells = vec![short(&row.model)];
            cells.extend(differing.iter().map(|(_, of)| of(row)));
            cells.push(format!("{:.2}", gib(row.weights_bytes_per_gpu)));
            cells.push(match row.kv_cache_bytes_per_gpu.filter(|_| row.fits) {
                Some(bytes) => format!("{:.2}", gib(bytes)),
                None => "no".to_owned(),
            });
            cells.extend(row.contexts.iter().map(|c| match (row.fits, c.accepted) {
                (false, _) => "-".to_owned(),
                (true, false) => "too long".to_owned(),
                (true, true) => grouped(c.max_concurrency),
            }));
            grid.row(cells);
        }
        grid
    }

    fn fragmentation(&self) -> Grid {
        let mut grid = Grid::new(&[
            ("model", Align::Left),
            ("requests", Align::Right),
            ("tokens", Align::Right),
            ("reserved", Align::Right),
            ("without paging", Align::Right),
            ("in blocks", Align::Right),
            ("saved", Align::Right),
        ]);
        for row in &self.rows {
            for s in &row.scenarios {
                grid.row([
                    short(&row.model),
                    grouped(s.requests),
                    grouped(s.tokens),
                    grouped(s.reserved_tokens),
                    human_bytes(s.reserved_bytes),
                    human_bytes(s.paged_bytes),
                    format!("{:.1} %", s.saved_percent()),
                ]);
            }
        }
        grid
    }

    /// Contexts against what the table shows of them, one line a row; `None` where nothing depends on the context.
    pub fn chart(&self) -> Option<LineChart> {
        let capacity = self.view == View::Capacity;
        if self.view == View::Fragmentation {
            return None;
        }
        let mut columns = self.differing();
        columns.retain(|(name, _)| *name != "GPU" || capacity);
        let series: Vec<Series> = self
            .rows
            .iter()
            .filter(|row| row.fits || !capacity)
            .map(|row| {
                let mut name = short(&row.model);
                for (_, of) in &columns {
                    name.push_str(&format!(", {}", of(row)));
                }
                let cells = row.contexts.iter().filter(|c| c.accepted || !capacity);
                let points = cells.map(|c| {
                    let y = if capacity {
                        c.max_concurrency as f64
                    } else {
                        gib(c.request_bytes_per_gpu)
                    };
                    (c.context as f64, y)
                });
                Series {
                    name,
                    points: points.collect(),
                }
            })
            .collect();
        let largest = series
            .iter()
            .flat_map(|s| &s.points)
            .map(|p| p.1)
            .fold(0.0, f64::max);
        Some(LineChart {
            title: if capacity {
                "Requests that fit at once".to_owned()
            } else {
                "KV cache of one request".to_owned()
            },
            x_label: "tokens of a request".to_owned(),
            y_label: if capacity { "requests" } else { "GiB" }.to_owned(),
            x_log: true,
            y_max: if largest > 0.0 { largest * 1.05 } else { 1.0 },
            series,
        })
    }

    /// For a terminal: the table, and what its signs mean.
    pub fn text(&self) -> String {
        let mut out = self.grid().text();
        let starred = self.rows.iter().flat_map(|r| &r.contexts).any(|c| !c.accepted);
        if self.view == View::Models && starred {
            out.push_str("\n* longer than the model accepts\n");
        }
        if self.view == View::Capacity {
            let failing: Vec<&Row> = self.rows.iter().filter(|r| !r.fits).collect();
            if !failing.is_empty() {
                out.push('\n');
            }
            for row in failing.iter().take(10) {
                let why = row.why_not.as_deref().unwrap_or("does not fit");
                let line = format!("{} on {} x {}: {why}", row.model, row.gpus, row.gpu);
                super::text::wrap(&mut out, &line, "  ");
            }
            if failing.len() > 10 {
                out.push_str(&format!("and {} more that do not fit\n", failing.len() - 10));
            }
        }
        out
    }
}

/// The name without its organisation.
fn short(model: &str) -> String {
    // A shape has no organisation.
    model.rsplit('/').next().unwrap_or(model).to_owned()
}
