//! `check`: whether an image's records agree with each other, and their repair.

use engine_disk::{CheckReport, DiskError, Format, Repair};
use serde_json::{Map, Value, json};

use super::info::{Output, one_file, output, pretty};
use super::options::{Known, Options};
use super::source::{How, Source};
use super::{Failure, say};

pub const SYNOPSIS: &str =
    "[--object secret,id=…] [--image-opts] [-q] [-f fmt] [--output=human|json] [-r leaks|all] [-T src_cache] [-U] filename";

/// The check could not be carried out to its end.
const CHECK_FAILED: u8 = 1;
const CORRUPTED: u8 = 2;
const LEAKED: u8 = 3;
/// The format keeps no records that could disagree.
const NOT_SUPPORTED: u8 = 63;

pub fn run(arguments: &[String]) -> Result<u8, Failure> {
    let known = Known { short: "f:r:T:qU", long: &["repair=", "output=", "object=", "image-opts", "force-share", "format="] };
    let options = Options::parse(arguments, &known)?;
    let output = output(&options)?;
    let repair = match options.value("r").or(options.value("repair")) {
        None => Repair::Nothing,
        Some("leaks") => Repair::Leaks,
        Some("all") => Repair::All,
        Some(_) => {
            return Err(Failure::usage("Unknown option value for -r (expecting 'leaks' or 'all')"));
        }
    };
    let name = one_file(&options)?;
    let format = options.value("f").or(options.value("format"));
    let source = Source::named(name, format, options.has("image-opts"))?;
    let how = if repair == Repair::Nothing { How::reading() } else { How::writing() }.alone().asked_by(&options)?;
    let open_options = source.open_options(&how)?;
    let format = open_options.format.unwrap_or(Format::Raw);
    let report = match engine_disk::check(&open_options, repair) {
        Ok(report) => report,
        Err(DiskError::NotPossible { .. }) => {
            return Err(Failure::new("This image format does not support checks").with_status(NOT_SUPPORTED));
        }
        Err(error) => return Err(Failure::new(format!("Check failed: {error}")).with_status(CHECK_FAILED)),
    };
    match output {
        Output::Json => say!("{}\n", pretty(&json_report(&report, name, format))),
        Output::Human if options.has("q") => {}
        Output::Human => print_report(&report)?,
    }
    Ok(match report {
        CheckReport { errors, unmarked, .. } if errors + unmarked > 0 => CORRUPTED,
        CheckReport { leaks, .. } if leaks > 0 => LEAKED,
        _ => 0,
    })
}

fn print_report(report: &CheckReport) -> Result<(), Failure> {
    for detail in &report.details {
        eprintln!("{detail}");
    }
    if report.leaks_fixed + report.errors_fixed > 0 {
        say!(
            "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\n\
             Double checking the fixed image now...\n",
            report.leaks_fixed,
            report.errors_fixed
        );
    }
    let errors = report.errors + report.unmarked;
    if errors + report.leaks == 0 {
        say!("No errors were found on the image.\n");
    }
    if errors > 0 {
        say!(
            "\n{errors} errors were found on the image.\n\
             Data may be corrupted, or further writes to the image may corrupt it.\n"
        );
    }
    if report.leaks > 0 {
        say!(
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n",
            report.leaks
        );
    }
    if report.total_clusters > 0 && report.allocated_clusters > 0 {
        let percent = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        let CheckReport { allocated_clusters: allocated, total_clusters: total, .. } = *report;
        say!(
            "{allocated}/{total} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters\n",
            percent(allocated, total),
            percent(report.fragmented_clusters, allocated),
            percent(report.compressed_clusters, allocated)
        );
    }
    if report.image_end > 0 {
        say!("Image end offset: {}\n", report.image_end);
    }
    Ok(())
}

fn json_report(report: &CheckReport, name: &str, format: Format) -> Value {
    let mut object = Map::new();
    object.insert("filename".into(), json!(name));
    object.insert("format".into(), json!(format.name()));
    object.insert("check-errors".into(), json!(0));
    let counts = [
        ("image-end-offset", report.image_end),
        ("corruptions", report.errors + report.unmarked),
        ("leaks", report.leaks),
        ("corruptions-fixed", report.errors_fixed),
        ("leaks-fixed", report.leaks_fixed),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("compressed-clusters", report.compressed_clusters),
    ];
    // What was not counted, or not found, is left out.
    for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        object.insert(name.into(), json!(count));
    }
    Value::Object(object)
}
