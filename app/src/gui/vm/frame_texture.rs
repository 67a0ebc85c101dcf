//! The guest's picture on the GPU. Only what changed is uploaded, straight from the screen's pixels: their `0x00RRGGBB`
//! words are `Bgra8Unorm` in memory. It is drawn by a pipeline of our own, because egui's shader costs three to six times
//! as much on computers without a GPU.
//!
//! Pixels are sampled so that whole multiples are exact and other sizes blend only along pixel borders.

use std::sync::{Arc, Mutex};

use bytemuck::{Pod, Zeroable};
use egui::PaintCallbackInfo;
use egui_wgpu::{CallbackResources, CallbackTrait, ScreenDescriptor};
use engine_display::{Damage, Picture, ScreenReader};

use super::placement::Placement;

/// Draws one frame of one guest screen; see [`super::VmWindow`].
pub struct GuestPicture {
    /// Whose picture.
    pub reader: Arc<Mutex<ScreenReader>>,
    /// Where it goes.
    pub placement: Placement,
}

/// What stays on the GPU between frames.
struct Gpu {
    pipeline: wgpu::RenderPipeline,
    layout: wgpu::BindGroupLayout,
    sampler: wgpu::Sampler,
    place: wgpu::Buffer,
    picture: Option<OnGpu>,
}

struct OnGpu {
    texture: wgpu::Texture,
    binding: wgpu::BindGroup,
}

/// As the shader reads it.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Place {
    /// Left, top, width and height of the picture, in pixels of the window.
    picture: [f32; 4],
    /// Width and height of the window.
    window: [f32; 2],
    /// Columns and rows of the guest.
    guest: [f32; 2],
}

const SHADER: &str = "
struct Place { picture: vec4f, window: vec2f, guest: vec2f }
@group(0) @binding(0) var<uniform> place: Place;
@group(0) @binding(1) var frame: texture_2d<f32>;
@group(0) @binding(2) var linear: sampler;
struct Corner { @builtin(position) position: vec4f, @location(0) texel: vec2f }

@vertex fn corner(@builtin(vertex_index) index: u32) -> Corner {
    let at = vec2f(f32(index & 1u), f32(index >> 1u));
    let pixel = place.picture.xy + at * place.picture.zw;
    let clip = vec2f(pixel.x / place.window.x * 2.0 - 1.0, 1.0 - pixel.y / place.window.y * 2.0);
    return Corner(vec4f(clip, 0.0, 1.0), at * place.guest);
}

@fragment fn color(in: Corner) -> @location(0) vec4f {
    // Blend only in the outermost half display pixel of each guest pixel; shrunk pictures blend everywhere.
    let scale = max(place.picture.zw / place.guest, vec2f(1.0));
    let flat = vec2f(0.5) - vec2f(0.5) / scale;
    let from_center = fract(in.texel) - vec2f(0.5);
    let blend = (from_center - clamp(from_center, -flat, flat)) * scale + vec2f(0.5);
    let texel = floor(in.texel) + blend;
    return vec4f(textureSampleLevel(frame, linear, texel / place.guest, 0.0).rgb, 1.0);
}
";

/// Makes the pipeline; once for each window.
pub fn prepare_gpu(state: &egui_wgpu::RenderState) {
    let device = &state.device;
    let shader = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some("guest picture"),
        source: wgpu::ShaderSource::Wgsl(SHADER.into()),
    });
    let entry = |binding, visibility, ty| wgpu::BindGroupLayoutEntry { binding, visibility, ty, count: None };
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some("guest picture"),
        entries: &[
            entry(
                0,
                wgpu::ShaderStages::VERTEX_FRAGMENT,
                wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Uniform,
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
            ),
            entry(
                1,
                wgpu::ShaderStages::FRAGMENT,
                wgpu::BindingType::Texture {
                    sample_type: wgpu::TextureSampleType::Float { filterable: true },
                    view_dimension: wgpu::TextureViewDimension::D2,
                    multisampled: false,
                },
            ),
            entry(2, wgpu::ShaderStages::FRAGMENT, wgpu::BindingType::Sampler(wgpu::SamplerBindingType::Filtering)),
        ],
    });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some("guest picture"),
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    let pipeline = device.create_render_pipeline(&wgpu::RenderPipelineDescriptor {
        label: Some("guest picture"),
        layout: Some(&pipeline_layout),
        vertex: wgpu::VertexState {
            module: &shader,
            entry_point: Some("corner"),
            compilation_options: Default::default(),
            buffers: &[],
        },
        primitive: wgpu::PrimitiveState { topology: wgpu::PrimitiveTopology::TriangleStrip, ..Default::default() },
        depth_stencil: None,
        multisample: wgpu::MultisampleState::default(),
        fragment: Some(wgpu::FragmentState {
            module: &shader,
            entry_point: Some("color"),
            compilation_options: Default::default(),
            targets: &[Some(state.target_format.into())],
        }),
        multiview_mask: None,
        cache: None,
    });
    let sampler = device.create_sampler(&wgpu::SamplerDescriptor {
        mag_filter: wgpu::FilterMode::Linear,
        min_filter: wgpu::FilterMode::Linear,
        ..Default::default()
    });
    let place = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("guest picture"),
        size: size_of::<Place>() as u64,
        usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    state.renderer.write().callback_resources.insert(Gpu { pipeline, layout, sampler, place, picture: None });
}

impl Gpu {
    /// Uploads what changed.
    fn show(&mut self, device: &wgpu::Device, queue: &wgpu::Queue, picture: &Picture, damage: &Damage) {
        let size = (picture.width, picture.height);
        let fits = self.picture.as_ref().is_some_and(|on_gpu| (on_gpu.texture.width(), on_gpu.texture.height()) == size);
        let limit = device.limits().max_texture_dimension_2d;
        if size.0 == 0 || size.1 == 0 || size.0 > limit || size.1 > limit {
            tracing::warn!(?size, "this picture cannot be shown by the host's graphics");
            self.picture = None;
            return;
        }
        let on_gpu = match &mut self.picture {
            Some(on_gpu) if fits => on_gpu,
            picture => picture.insert(on_gpu(device, &self.layout, &self.place, &self.sampler, size)),
        };
        let whole = engine_display::Rect { left: 0, top: 0, right: size.0, bottom: size.1 };
        let all = [whole];
        let rects = if fits { damage.rects() } else { &all };
        let bytes: &[u8] = bytemuck::cast_slice(&picture.pixels);
        for rect in rects {
            let Some(rect) = rect.clipped(size.0, size.1) else { continue };
            queue.write_texture(
                wgpu::TexelCopyTextureInfo {
                    texture: &on_gpu.texture,
                    mip_level: 0,
                    origin: wgpu::Origin3d { x: rect.left, y: rect.top, z: 0 },
                    aspect: wgpu::TextureAspect::All,
                },
                bytes,
                wgpu::TexelCopyBufferLayout {
                    offset: (u64::from(rect.top) * u64::from(size.0) + u64::from(rect.left)) * 4,
                    bytes_per_row: Some(size.0 * 4),
                    rows_per_image: None,
                },
                wgpu::Extent3d { width: rect.right - rect.left, height: rect.bottom - rect.top, depth_or_array_layers: 1 },
            );
        }
    }
}

fn on_gpu(
    device: &wgpu::Device,
    layout: &wgpu::BindGroupLayout,
    place: &wgpu::Buffer,
    sampler: &wgpu::Sampler,
    (width, height): (u32, u32),
) -> OnGpu {
    let texture = device.create_texture(&wgpu::TextureDescriptor {
        label: Some("guest picture"),
        size: wgpu::Extent3d { width, height, depth_or_array_layers: 1 },
        mip_level_count: 1,
        sample_count: 1,
        dimension: wgpu::TextureDimension::D2,
        format: wgpu::TextureFormat::Bgra8Unorm,
        usage: wgpu::TextureUsages::TEXTURE_BINDING | wgpu::TextureUsages::COPY_DST,
        view_formats: &[],
    });
    let binding = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("guest picture"),
        layout,
        entries: &[
            wgpu::BindGroupEntry { binding: 0, resource: place.as_entire_binding() },
            wgpu::BindGroupEntry {
                binding: 1,
                resource: wgpu::BindingResource::TextureView(&texture.create_view(&Default::default())),
            },
            wgpu::BindGroupEntry { binding: 2, resource: wgpu::BindingResource::Sampler(sampler) },
        ],
    });
    OnGpu { texture, binding }
}

impl CallbackTrait for GuestPicture {
    fn prepare(
        &self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        screen: &ScreenDescriptor,
        _encoder: &mut wgpu::CommandEncoder,
        resources: &mut CallbackResources,
    ) -> Vec<wgpu::CommandBuffer> {
        let Some(gpu) = resources.get_mut::<Gpu>() else { return Vec::new() };
        let mut reader = super::lock(&self.reader);
        reader.read(|picture, damage| gpu.show(device, queue, picture, damage));
        let picture = self.placement.picture;
        let place = Place {
            picture: [picture.left as f32, picture.top as f32, picture.width as f32, picture.height as f32],
            window: screen.size_in_pixels.map(|side| side as f32),
            guest: [self.placement.guest.0 as f32, self.placement.guest.1 as f32],
        };
        queue.write_buffer(&gpu.place, 0, bytemuck::bytes_of(&place));
        Vec::new()
    }

    fn paint(&self, info: PaintCallbackInfo, pass: &mut wgpu::RenderPass<'static>, resources: &CallbackResources) {
        let Some(gpu) = resources.get::<Gpu>() else { return };
        let Some(picture) = &gpu.picture else { return };
        // The shader places the picture in the whole window, because egui cuts the viewport of a callback to the window,
        // which would squeeze a picture that is larger. What is outside of the view is cut off by egui's scissor.
        let [width, height] = info.screen_size_px;
        pass.set_viewport(0.0, 0.0, width as f32, height as f32, 0.0, 1.0);
        pass.set_pipeline(&gpu.pipeline);
        pass.set_bind_group(0, &picture.binding, &[]);
        pass.draw(0..4, 0..1);
    }
}
