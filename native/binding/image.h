// Image preparation for JavaScript.
#pragma once

#include <napi.h>

namespace siglip {

// prepareImages(images, recipe, into) of lib/native/addon.ts.
Napi::Value prepare_images(const Napi::CallbackInfo& info);

// renderViews(images, views, recipe, into) likewise.
Napi::Value render_views(const Napi::CallbackInfo& info);

}  // namespace siglip
