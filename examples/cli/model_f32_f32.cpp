// SPDX-License-Identifier: Apache-2.0
//
// Weights in f32, cache in f32.
#include "any_model_impl.hpp"

template std::unique_ptr<cli::AnyModel> cli::make_model<hymba::Weights::f32, hymba::Cache::f32>(
    const cli::AnyArchitecture&, hymba::TensorTable, const std::string&);
