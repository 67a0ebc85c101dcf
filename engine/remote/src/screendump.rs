//! Writes a picture to a file: PPM as QEMU's `screendump` does, or PNG when the name ends so.

use engine_display::Picture;
use std::io::Write;
use std::path::Path;

/// Writes `picture` to `path`; `png` asks for PNG whatever the name.
pub fn write(picture: &Picture, path: &Path, png: bool) -> Result<(), String> {
    let mut rgb = Vec::with_capacity(picture.pixels.len() * 3);
    for pixel in &picture.pixels {
        rgb.extend([(pixel >> 16) as u8, (pixel >> 8) as u8, *pixel as u8]);
    }
    let failed = |error: &dyn std::fmt::Display| format!("The picture could not be written ({error}): {}", path.display());
    let mut file = std::fs::File::create(path).map_err(|error| failed(&error))?;
    if png || path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
        let mut encoder = png::Encoder::new(std::io::BufWriter::new(file), picture.width, picture.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().map_err(|error| failed(&error))?;
        return writer.write_image_data(&rgb).and_then(|()| writer.finish()).map_err(|error| failed(&error));
    }
    let header = format!("P6\n{} {}\n255\n", picture.width, picture.height);
    file.write_all(header.as_bytes()).and_then(|()| file.write_all(&rgb)).map_err(|error| failed(&error))
}
