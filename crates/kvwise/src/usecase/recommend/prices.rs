//! What an hour of a GPU costs.

use std::collections::BTreeMap;

use kvwise_core::{Error, Result, hardware};
use serde::Deserialize;

/// Prices by catalogue name.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// When the defaults were collected.
    pub date: String,
    /// Where.
    pub source: String,
    /// Dollars an hour of one GPU.
    pub usd_per_hour: BTreeMap<String, f64>,
}

impl Prices {
    /// The shipped defaults, with the user's own on top (`h100=2.5`).
    ///
    /// # Errors
    /// If a GPU is not known or a price is no positive number.
    pub fn with(own: &[String]) -> Result<Self> {
        let mut prices: Self = toml::from_str(include_str!("../../../../core/data/prices.toml"))
            .map_err(|e| Error::input(format!("the shipped prices: {e}")))?;
        for text in own {
            let wrong = || {
                Error::input(format!(
                    "--price is \"{text}\", expected a GPU and dollars an hour, like h100=2.5"
                ))
            };
            let (name, price) = text.split_once('=').ok_or_else(wrong)?;
            let price: f64 = price.trim().parse().map_err(|_| wrong())?;
            if !(price.is_finite() && price > 0.0 && price < 1e6) {
                return Err(wrong());
            }
            let gpu = hardware::find(name.trim()).map_err(|e| e.at("--price"))?;
            prices.usd_per_hour.insert(gpu.name.clone(), price);
        }
        Ok(prices)
    }

    /// The price of a GPU.
    ///
    /// # Errors
    /// If none is known.
    pub fn of(&self, gpu: &str) -> Result<f64> {
        self.usd_per_hour.get(gpu).copied().ok_or_else(|| {
            Error::input(format!("no price of {gpu} is known"))
                .hint(format!("give one: --price {gpu}=USD_PER_HOUR"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_prices_are_of_known_gpus_and_own_ones_win() {
        let prices = Prices::with(&["NVIDIA H100=9.5".to_owned()]).unwrap();
        for (name, price) in &prices.usd_per_hour {
            assert_eq!(&hardware::find(name).unwrap().name, name);
            assert!(*price > 0.0);
        }
        assert!((prices.of("h100").unwrap() - 9.5).abs() < 1e-12);
        assert!(prices.of("t4").unwrap_err().hints()[0].contains("--price t4="));
        for wrong in ["h100", "h100=-1", "h100=x", "h100=inf"] {
            assert!(Prices::with(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
