//! Stand-ins for makers' tools print what real ones printed in public logs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use kvwise_core::units::{GIB, MIB};
use proptest::prelude::*;

use super::*;

/// A folder with tools; each prints one of its texts, chosen by a word among its arguments.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A tool that runs this shell text.
    fn tool(self, name: &str, script: &str) -> Self {
        let file = self.0.path().join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// A tool that prints `text` where its arguments hold `word`, and fails else.
    fn says(self, name: &str, answers: &[(&str, &str)]) -> Self {
        let mut script = String::from("case \"$*\" in\n");
        for (i, (word, text)) in answers.iter().enumerate() {
            let file = self.0.path().join(format!("{name}.{i}"));
            fs::write(&file, text).unwrap();
            script.push_str(&format!("*'{word}'*) /bin/cat {};;\n", file.display()));
        }
        script.push_str("*) echo no such option; exit 1;;\nesac");
        self.tool(name, &script)
    }

    fn tools(&self, variables: &'static [(&'static str, &'static str)]) -> Tools {
        Tools::of(
            self.0.path().as_os_str().to_owned(),
            |name| {
                variables
                    .iter()
                    .find(|(n, _)| *n == name)
                    .map(|(_, v)| (*v).to_owned())
            },
            Duration::from_millis(500),
        )
    }

    fn detect(&self) -> Detected {
        detect(&self.tools(&[])).unwrap()
    }

    #[track_caller]
    fn fails(&self, says: &str) {
        let e = detect(&self.tools(&[])).unwrap_err();
        assert!(format!("{e:?}").contains(says), "expected \"{says}\" in {e:?}");
    }
}

const TWO_H100: &str = "\
0, NVIDIA H100 80GB HBM3, GPU-8c1c6c0d-0a70-9ad1-3bff-d4d0c7a1d3a1, 81559, 81079, Disabled, 9.0
1, NVIDIA H100 80GB HBM3, GPU-1d0d3b9e-41f7-2f0a-77e5-9b0c5d8a9e11, 81559, 12345, Disabled, 9.0
";

#[test]
fn whole_gpus_are_listed_with_their_free_memory_and_found_in_the_catalogue() {
    let found = Bench::new()
        .says("nvidia-smi", &[("compute_cap", TWO_H100)])
        .detect();
    assert_eq!(found.sources, ["nvidia-smi"]);
    assert_eq!(found.devices.len(), 2);
    let second = &found.devices[1];
    assert_eq!((second.index, second.total_bytes), (1, 81_559 * MIB));
    assert_eq!(second.free_bytes, Some(12_345 * MIB));
    assert_eq!(second.row().unwrap().name, "h100");
    assert_eq!(second.compute.as_deref(), Some("9.0"));
}

#[test]
fn an_old_driver_that_does_not_know_a_column_is_asked_without_it() {
    let bench = Bench::new().tool(
        "nvidia-smi",
        "case \"$*\" in\n*compute_cap*) echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2;;\n\
         *) echo '0, Tesla T4, GPU-aa, 15109, 15106, [N/A]';;\nesac",
    );
    let found = bench.detect();
    assert_eq!(found.devices[0].row().unwrap().name, "t4");
    assert_eq!(found.devices[0].compute, None);
}

/// One whole GPU and one in slices; the listing is from a cluster whose H200 are cut in slices.
const SLICED: &str = "\
0, NVIDIA H200, GPU-b2acda36-db78-a209-f9ef-d07b4336c449, [Insufficient Permissions], [N/A], Enabled, 9.0
1, NVIDIA H200, GPU-af5e38ec-d1d6-1c20-0000-000000000000, 143771, 143151, Disabled, 9.0
";
const LISTING: &str = "\
GPU 0: NVIDIA H200 (UUID: GPU-b2acda36-db78-a209-f9ef-d07b4336c449)
  MIG 2g.35gb     Device  0: (UUID: MIG-b05c0034-4d0e-5d3c-a25c-e6795d1779df)
  MIG 1g.18gb     Device  1: (UUID: MIG-be041b89-b751-5c96-84aa-85315833c669)
  MIG 1g.18gb+me  Device  2: (UUID: MIG-605bf89c-7be6-586e-a729-a2369e833b3e)
GPU 1: NVIDIA H200 (UUID: GPU-af5e38ec-d1d6-1c20-0000-000000000000)
";

#[test]
fn slices_stand_for_their_gpu_with_the_catalogues_memory() {
    let bench = Bench::new().says("nvidia-smi", &[("query", SLICED), ("-L", LISTING)]);
    let found = bench.detect();
    let titles: Vec<String> = found.devices.iter().map(Device::title).collect();
    assert_eq!(
        titles,
        [
            "NVIDIA H200 MIG 2g.35gb",
            "NVIDIA H200 MIG 1g.18gb",
            "NVIDIA H200 MIG 1g.18gb+me",
            "NVIDIA H200"
        ]
    );
    assert_eq!(found.devices[2].row().unwrap().name, "h200-1g.18gb");
    assert_eq!(found.devices[2].total_bytes, 16 * GIB);
    assert!(!found.devices[0].total_is_measured && found.devices[3].total_is_measured);
    assert_eq!(found.notes.len(), 3);

    // what a container with one slice sees
    let one = detect(&bench.tools(&[("CUDA_VISIBLE_DEVICES", "MIG-be041b89")])).unwrap();
    assert_eq!(one.devices.len(), 1);
    assert_eq!(one.devices[0].mig_profile.as_deref(), Some("1g.18gb"));
}

#[test]
fn a_slice_that_nobody_knows_asks_for_its_memory() {
    let list = LISTING.replace("2g.35gb", "1c.3g.71gb");
    Bench::new()
        .says("nvidia-smi", &[("query", SLICED), ("-L", &list)])
        .fails("give it with --gpu-memory");
}

#[test]
fn hidden_devices_are_not_there() {
    let bench = Bench::new().says("nvidia-smi", &[("query", TWO_H100)]);
    let indices =
        |tools: &Tools| -> Vec<u32> { detect(tools).unwrap().devices.iter().map(|d| d.index).collect() };
    assert_eq!(indices(&bench.tools(&[("CUDA_VISIBLE_DEVICES", "1")])), [1]);
    assert_eq!(indices(&bench.tools(&[("CUDA_VISIBLE_DEVICES", "1,0")])), [1, 0]);
    assert_eq!(
        indices(&bench.tools(&[("CUDA_VISIBLE_DEVICES", "GPU-1d0d")])),
        [1]
    );
    assert_eq!(indices(&bench.tools(&[("CUDA_VISIBLE_DEVICES", "0,7,1")])), [0]);
    assert!(indices(&bench.tools(&[("CUDA_VISIBLE_DEVICES", "")])).is_empty());
    assert!(indices(&bench.tools(&[("CUDA_VISIBLE_DEVICES", "-1")])).is_empty());
}

#[test]
fn a_gpu_that_shares_the_hosts_memory_has_the_hosts() {
    // a DGX Spark: the driver has no memory of its own to tell
    let text = "0, NVIDIA GB10, GPU-77, [N/A], [N/A], [N/A], 12.1\n";
    let found = Bench::new().says("nvidia-smi", &[("query", text)]).detect();
    let device = &found.devices[0];
    assert!(device.unified && device.total_bytes > 0);
    assert!(device.free_bytes.unwrap() <= device.total_bytes);
    assert_eq!(device.row().unwrap().name, "gb10");
}

/// `amd-smi static --asic --vram --json` on an MI300X under `ROCm` 7, shortened, and the matching `metric`.
const MI300X: &str = r#"{"gpu_data": [{"gpu": 0,
 "asic": {"market_name": "AMD Instinct MI300X", "vendor_id": "0x1002", "device_id": "0x74a1", "target_graphics_version": "gfx942"},
 "vram": {"type": "HBM3", "size": {"value": 196592, "unit": "MB"}}}]}"#;
const MI300X_MEMORY: &str = r#"{"gpu_data": [{"gpu": 0, "mem_usage": {
 "total_vram": {"value": 196592, "unit": "MB"}, "used_vram": {"value": 285, "unit": "MB"}, "free_vram": {"value": 196307, "unit": "MB"}}}]}"#;

#[test]
fn amd_smi_is_read_in_both_of_its_shapes() {
    let wrapped = Bench::new()
        .says("amd-smi", &[("static", MI300X), ("metric", MI300X_MEMORY)])
        .detect();
    let device = &wrapped.devices[0];
    assert_eq!((device.maker, device.total_bytes), (Maker::Amd, 196_592 * MIB));
    assert_eq!(device.free_bytes, Some(196_307 * MIB));
    assert_eq!(device.row().unwrap().name, "mi300x");
    let plain = r#"[{"gpu": 0, "asic": {"market_name": "AMD Instinct MI300X"}, "vram": {"size": 196592}}]"#;
    let found = Bench::new()
        .says("amd-smi", &[("static", plain), ("metric", "")])
        .detect();
    assert_eq!(
        (found.devices[0].total_bytes, found.devices[0].free_bytes),
        (196_592 * MIB, None)
    );
}

/// `rocm-smi --showproductname --showmeminfo vram --json` of a workstation, with the warning that it prints first.
const RX_7900: &str = r#"WARNING: AMD GPU device(s) is/are in a low-power state. Check power control/runtime_status
{"card0": {"VRAM Total Memory (B)": "21458059264", "VRAM Total Used Memory (B)": "27856896", "Card Series": "Radeon RX 7900 XT", "Card Model": "0x744c", "GFX Version": "gfx1100"}, "system": {"Driver version": "6.8"}}"#;

#[test]
fn rocm_smi_is_asked_where_amd_smi_is_not() {
    let found = Bench::new().says("rocm-smi", &[("vram", RX_7900)]).detect();
    assert_eq!(found.sources, ["rocm-smi"]);
    let device = &found.devices[0];
    assert_eq!(device.name, "Radeon RX 7900 XT");
    assert_eq!(device.free_bytes, Some(21_458_059_264 - 27_856_896));
    assert_eq!(device.compute.as_deref(), Some("gfx1100"));
    // an older spelling of the same keys
    let older = RX_7900.replace("Card Series", "Card series");
    assert_eq!(
        Bench::new()
            .says("rocm-smi", &[("vram", &older)])
            .detect()
            .devices
            .len(),
        1
    );
}

#[test]
fn an_apple_processor_shares_its_memory() {
    let bench = Bench::new().says(
        "sysctl",
        &[("brand_string", "Apple M3 Max\n"), ("memsize", "68719476736\n")],
    );
    let found = bench.detect();
    assert_eq!(found.devices[0].total_bytes, 64 * GIB);
    assert!(found.devices[0].unified && found.notes[0].contains("wired_limit"));
    let other = Bench::new()
        .says("sysctl", &[("brand_string", "Intel(R) Core(TM) i9\n")])
        .detect();
    assert!(other.devices.is_empty());
}

#[test]
fn a_machine_without_tools_has_nothing_and_no_error() {
    assert_eq!(Bench::new().detect(), Detected::default());
}

#[test]
fn tools_that_fail_hang_or_babble_are_named() {
    let failing =
        "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9";
    Bench::new()
        .tool("nvidia-smi", failing)
        .fails("could not communicate with the NVIDIA driver");
    let before = Instant::now();
    Bench::new()
        .tool("nvidia-smi", "exec /bin/sleep 60")
        .fails("no answer in");
    assert!(before.elapsed() < Duration::from_secs(5));
    Bench::new()
        .tool("nvidia-smi", "/usr/bin/head -c 20000000 /dev/zero")
        .fails("prints more than");
    for text in [
        "hello\n",
        "x, NVIDIA L4, u, 1, 1, N/A, 8.9\n",
        "0, , u, 1, 1, N/A, 8.9\n",
        "0, L4, u, many, 1, N/A, 8.9\n",
        "0, L4, u, 18446744073709551615, 1, N/A, 8.9\n",
    ] {
        Bench::new()
            .says("nvidia-smi", &[("query", text)])
            .fails("in the line");
    }
    for (text, says) in [
        ("", "no valid JSON"),
        ("3", "is no list"),
        ("{}", "no gpu_data"),
        ("[{}]", "without its number"),
        (r#"[{"gpu":0}]"#, "market_name"),
        (r#"[{"gpu":0,"asic":{"market_name":"X"}}]"#, "vram.size"),
    ] {
        Bench::new()
            .says("amd-smi", &[("static", text), ("metric", "")])
            .fails(says);
    }
    for (text, says) in [
        ("nothing", "no object"),
        ("{", "no valid JSON"),
        (r#"{"card0":{}}"#, "VRAM Total"),
        (r#"{"cardX":{}}"#, "is no card"),
    ] {
        Bench::new().says("rocm-smi", &[("vram", text)]).fails(says);
    }
}

/// What the driver's complaints are explained as.
#[test]
fn complaints_of_the_driver_say_what_they_mean() {
    for (said, status, means) in [
        (
            "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 570.195",
            18,
            "the driver was updated while it was loaded",
        ),
        (
            "Failed to initialize NVML: Unknown Error",
            255,
            "a container lost its devices",
        ),
        (
            "Failed to initialize NVML: Insufficient Permissions",
            4,
            "are not open to this user",
        ),
        (
            "NVIDIA-SMI has failed because it couldn\'t communicate with the NVIDIA driver.",
            9,
            "kernel module is not loaded",
        ),
        (
            "Unable to determine the device handle for GPU0000:3B:00.0: Unknown Error",
            255,
            "does not answer any more",
        ),
        (
            "Unable to query the device: GPU is lost.  Reboot the system to recover this GPU",
            15,
            "does not answer any more",
        ),
    ] {
        Bench::new()
            .tool(
                "nvidia-smi",
                &format!("/bin/cat <<'END'\n{said}\nEND\nexit {status}"),
            )
            .fails(means);
    }
}

#[test]
fn a_driver_without_gpus_leaves_the_search_to_other_makers_tools() {
    for status in [0, 6] {
        let found = Bench::new()
            .tool(
                "nvidia-smi",
                &format!("echo 'No devices were found'; exit {status}"),
            )
            .says("rocm-smi", &[("vram", RX_7900)])
            .detect();
        assert_eq!(found.sources, ["nvidia-smi", "rocm-smi"]);
        assert_eq!(found.devices.len(), 1);
        assert!(found.notes[0].contains("no GPU is bound"), "{:?}", found.notes);
    }
}

#[test]
fn a_gpu_in_mig_mode_without_slices_is_named() {
    let list = "GPU 0: NVIDIA H200 (UUID: GPU-b2acda36-db78-a209-f9ef-d07b4336c449)\n\
                GPU 1: NVIDIA H200 (UUID: GPU-af5e38ec-d1d6-1c20-0000-000000000000)\n";
    let found = Bench::new()
        .says("nvidia-smi", &[("query", SLICED), ("-L", list)])
        .detect();
    assert_eq!(found.devices.len(), 1);
    assert!(found.notes[0].contains("without a slice"), "{:?}", found.notes);
}

#[test]
fn superchips_boards_and_their_slices_are_found_in_the_catalogue() {
    let text = "0, NVIDIA GH200 480GB, GPU-1, 97871, 97280, Enabled, 9.0\n";
    let list = "GPU 0: NVIDIA GH200 480GB (UUID: GPU-1)\n  MIG 3g.48gb     Device  0: (UUID: MIG-1)\n  \
                MIG 1g.12gb+me  Device  1: (UUID: MIG-2)\n";
    let found = Bench::new()
        .says("nvidia-smi", &[("query", text), ("-L", list)])
        .detect();
    let names: Vec<&str> = found
        .devices
        .iter()
        .map(|d| d.row().unwrap().name.as_str())
        .collect();
    assert_eq!(names, ["gh200-3g.48gb", "gh200-1g.12gb"]);
    assert_eq!(found.devices[0].total_bytes, 46 * GIB + GIB / 2);

    let text = "0, NVIDIA B200, GPU-1, [Insufficient Permissions], [N/A], Enabled, 10.0\n";
    for (profile, gib) in [("3g.90gb", 89), ("7g.180gb", 178)] {
        let list = format!("GPU 0: NVIDIA B200 (UUID: GPU-1)\n  MIG {profile}  Device  0: (UUID: MIG-1)\n");
        let found = Bench::new()
            .says("nvidia-smi", &[("query", text), ("-L", &list)])
            .detect();
        assert_eq!(found.devices[0].total_bytes, gib * GIB, "{profile}");
    }
    let text = "0, NVIDIA RTX PRO 6000 Blackwell Server Edition, GPU-1, 97887, 97000, Enabled, 12.0\n";
    let list = "GPU 0: NVIDIA RTX PRO 6000 Blackwell Server Edition (UUID: GPU-1)\n  \
                MIG 4g.96gb+gfx  Device  0: (UUID: MIG-1)\n";
    let found = Bench::new()
        .says("nvidia-smi", &[("query", text), ("-L", list)])
        .detect();
    assert_eq!(found.devices[0].row().unwrap().name, "rtx-pro-6000-4g.96gb");
}

#[test]
fn boards_with_the_hosts_memory_have_it_whatever_the_driver_calls_them() {
    for (name, compute) in [
        ("Orin (nvgpu)", "8.7"),
        ("NVIDIA Thor", "11.0"),
        ("NVIDIA GB10", "12.1"),
    ] {
        for unknown in ["[N/A]", "[Not Supported]", "N/A"] {
            let text = format!("0, {name}, [N/A], {unknown}, {unknown}, [N/A], {compute}\n");
            let found = Bench::new().says("nvidia-smi", &[("query", &text)]).detect();
            let device = &found.devices[0];
            assert!(device.unified && device.total_bytes > 0, "{text}");
            assert!(found.notes[0].contains("shares the host's memory"), "{text}");
        }
    }
}

#[test]
fn different_gpus_keep_their_own_memory_and_the_order_of_cuda_is_pointed_out() {
    const ORDERED: &[(&str, &str)] = &[
        ("CUDA_VISIBLE_DEVICES", "1,0"),
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
    ];
    let text = "0, NVIDIA T1000, GPU-1, 4096, 3500, [N/A], 7.5\n1, NVIDIA RTX A6000, GPU-2, 49140, 48500, [N/A], 8.6\n";
    let bench = Bench::new().says("nvidia-smi", &[("query", text)]);
    let found = detect(&bench.tools(&[("CUDA_VISIBLE_DEVICES", "1")])).unwrap();
    assert_eq!(found.devices[0].total_bytes, 49_140 * MIB);
    assert!(found.notes[0].contains("CUDA_DEVICE_ORDER=PCI_BUS_ID"));
    let found = detect(&bench.tools(ORDERED)).unwrap();
    assert_eq!(found.devices.iter().map(|d| d.index).collect::<Vec<_>>(), [1, 0]);
    assert!(found.notes.is_empty(), "{:?}", found.notes);
}

/// `xpu-smi discovery -j` of two releases: with and without the memory, which `-d 0` then tells.
const ARC: &str = r#"{"device_list": [
 {"device_id": 0, "device_type": "GPU", "device_function_type": "physical", "device_name": "Intel(R) Arc(TM) A770 Graphics",
  "uuid": "00000000-0000-0000-0000-56a05e001000", "memory_physical_size_byte": "17102532608"},
 {"device_id": 1, "device_type": "GPU", "device_function_type": "virtual", "device_name": "Intel(R) Arc VF"}]}"#;
const ARC_USED: &str = r#"{"device_id": 0, "device_level": [{"metrics_type": "XPUM_STATS_POWER", "value": 40.2},
 {"metrics_type": "XPUM_STATS_MEMORY_USED", "value": 2048.0}]}"#;

#[test]
fn intels_gpus_are_listed_by_xpu_smi() {
    let found = Bench::new()
        .says("xpu-smi", &[("discovery", ARC), ("stats", ARC_USED)])
        .detect();
    assert_eq!((found.sources, found.devices.len()), (vec!["xpu-smi"], 1));
    let device = &found.devices[0];
    assert_eq!(device.total_bytes, 17_102_532_608);
    assert_eq!(device.free_bytes, Some(17_102_532_608 - 2048 * MIB));

    let short = ARC.replace(", \"memory_physical_size_byte\": \"17102532608\"", "");
    let short = short.replace(
        "\n  \"uuid\": \"00000000-0000-0000-0000-56a05e001000\"",
        "\"uuid\": \"u\"",
    );
    let one = r#"{"device_id": 0, "memory_physical_size_byte": 17102532608}"#;
    let found = Bench::new()
        .says("xpu-smi", &[("discovery -d", one), ("discovery", &short)])
        .detect();
    assert_eq!(found.devices[0].total_bytes, 17_102_532_608);
    assert_eq!(found.devices[0].free_bytes, None);

    for (text, says) in [
        ("", "no valid JSON"),
        ("{}", "no device_list"),
        (r#"{"device_list": [{}]}"#, "without its device_id"),
        (r#"{"device_list": [{"device_id": 0}]}"#, "device_name"),
        (
            r#"{"device_list": [{"device_id": 0, "device_name": "X"}]}"#,
            "memory_physical_size_byte",
        ),
    ] {
        Bench::new().says("xpu-smi", &[("discovery", text)]).fails(says);
    }
}

#[test]
fn older_and_partitioned_answers_of_amds_tools_are_read() {
    // ROCm 6.1 prints a list with bare numbers, and `N/A` where a partition does not tell what it uses.
    let fixed = r#"[{"gpu": 0, "asic": {"market_name": "MI300X"}, "vram": {"size": 196592}},
        {"gpu": 1, "asic": {"market_name": "MI300X"}, "vram": {"size": {"value": 191, "unit": "GB"}}}]"#;
    let metric = r#"[{"gpu": 0, "mem_usage": {"total_vram": 196592, "used_vram": 300}}, {"gpu": 1, "mem_usage": "N/A"}]"#;
    let found = Bench::new()
        .says("amd-smi", &[("static", fixed), ("metric", metric)])
        .detect();
    assert_eq!(found.devices[0].free_bytes, Some((196_592 - 300) * MIB));
    assert_eq!(
        (found.devices[1].total_bytes, found.devices[1].free_bytes),
        (191 * GIB, None)
    );
    // A processor's own graphics beside a card: each with what it has.
    let two = r#"{"card0": {"VRAM Total Memory (B)": "536870912", "VRAM Total Used Memory (B)": "482263040", "Card Series": "Rembrandt [Radeon 680M]"},
        "card1": {"VRAM Total Memory (B)": "25753026560", "VRAM Total Used Memory (B)": "0", "Card series": "N/A", "Card model": "Radeon RX 7900 XTX"}}"#;
    let found = Bench::new().says("rocm-smi", &[("vram", two)]).detect();
    assert_eq!(found.devices[1].name, "Radeon RX 7900 XTX");
    assert_eq!(found.devices[1].free_bytes, Some(25_753_026_560));
}

/// Pieces that tools print, so that random texts come close to real ones.
fn babble() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("0, NVIDIA L4, GPU-1, 23034, 22562, Enabled, 8.9\n".to_owned()),
        Just("GPU 0: NVIDIA L4 (UUID: GPU-1)\n".to_owned()),
        Just("  MIG 1g.6gb Device 0: (UUID: ".to_owned()),
        Just("{\"gpu_data\":[{\"gpu\":0,\"vram\":{\"size\":{\"value\":".to_owned()),
        Just("{\"card0\":{\"VRAM Total Memory (B)\":\"18446744073709551615\",".to_owned()),
        Just("18446744073709551615, ".to_owned()),
        ".{0,12}",
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_text_of_a_tool_makes_its_reader_panic(a in babble(), b in babble()) {
        if let Ok(gpus) = nvidia::table(&a) {
            let _ = nvidia::slices(&gpus, &b);
        }
        let _ = amd::amd_smi(&a, &b);
        let _ = amd::rocm_smi(&a);
        let _ = intel::devices(&a);
    }
}
