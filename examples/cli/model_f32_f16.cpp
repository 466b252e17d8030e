// SPDX-License-Identifier: Apache-2.0
//
// Weights in f32, cache in f16.
#include "any_model_impl.hpp"

template std::unique_ptr<cli::AnyModel> cli::make_model<hymba::Weights::f32, hymba::Cache::f16>(
    const cli::AnyArchitecture&, hymba::TensorTable, const std::string&);
