// SPDX-License-Identifier: Apache-2.0
//
// The models of one pair of formats. CMake compiles this file once for every pair, with HYMBA_CLI_WEIGHTS and
// HYMBA_CLI_CACHE naming it.
#include "../any_model_impl.hpp"

template std::unique_ptr<cli::AnyModel> cli::make_model<hymba::Weights::HYMBA_CLI_WEIGHTS, hymba::Cache::HYMBA_CLI_CACHE>(
    cli::Path, const cli::AnyArchitecture&, hymba::TensorTable, const std::string&);
